"""A launch in three steps: model, configuration, instance; then a look at all of it, and off it goes."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

import streamlit as st

from skyfleet.client import ApiError, ApiUnreachable
from skyfleet.domain.states import Market, Role
from skyfleet.domain.views import ModelView, OfferView
from ui import catalog, session
from ui import format as f
from ui.components import live, page
from ui.draft import Draft, InstanceChoice, Refused, at_home, cheapest, choices, saving

_STEPS: Final = {
    "model": "1 · Model",
    "configuration": "2 · Configuration",
    "instance": "3 · Instance",
    "review": "Review",
}
_ORDER: Final = list(_STEPS)
_CARDS: Final = 24
_ANY: Final = ""  # of a select box: no wish
#: Offered by name; the API knows which of them run where, and says so of a name that it does not know.
_ENGINES: Final = ("vllm", "sglang", "llama_cpp", "echo")


def show() -> None:
    """Draw the step that is next."""
    if not session.may(Role.OPERATOR):
        page.heading("New launch")
        st.info("Your key may look but not launch. Ask for one with the role `operator`.", icon=":material/lock:")
        return
    if _draft().sent and not st.session_state.get("launch"):
        st.session_state["draft"] = Draft()
        st.session_state["step"] = "model"
    draft = _draft()
    step = _step(draft)
    with live.needs_api():
        models = {item.id: item for item in catalog.models()}
        offers = catalog.offers(draft.model_name) if draft.model_name in models else []
    page.heading("New launch", sandbox=bool(offers) and all(item.sandbox for item in offers))
    _stepper(draft, step)
    _general_problem(draft)
    if step == "model" or draft.model_name not in models:
        _model(draft, list(models.values()))
        return
    steps: dict[str, Callable[[Draft, ModelView, list[OfferView]], None]] = {
        "configuration": _configuration,
        "instance": _instance,
        "review": _review,
    }
    steps[step](draft, models[draft.model_name], offers)


def _draft() -> Draft:
    return st.session_state.setdefault("draft", Draft())  # type: ignore[no-any-return]


def _step(draft: Draft) -> str:
    step: str = st.session_state.setdefault("step", "model")
    return step if draft.model_name else "model"


def _go(step: str) -> None:
    st.session_state["step"] = step


def _stepper(draft: Draft, step: str) -> None:
    """Where the person is; steps that were made can be gone back to."""
    at = _ORDER.index(step)
    with st.container(horizontal=True, gap="small", key="stepper"):
        for number, (name, label) in enumerate(_STEPS.items()):
            sign = "✓ " if number < at else "→ " if number == at else ""
            st.button(
                f"{sign}{label}",
                key=f"step-{name}",
                type="primary" if number == at else "secondary",
                disabled=number > at,
                on_click=_go,
                args=(name,),
            )


def _turn(back: str | None, on: str | None, label: str = "Continue") -> None:
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        if back is not None:
            st.button("Back", icon=":material/arrow_back:", on_click=_go, args=(back,))
        if on is not None:
            st.button(
                label, type="primary", icon=":material/arrow_forward:", icon_position="right", on_click=_go, args=(on,)
            )


# --- what was refused -------------------------------------------------------------------------------------------


def _general_problem(draft: Draft) -> None:
    """A refusal that no field is to blame for."""
    if draft.refused is None or draft.refused.problem.errors:
        return
    try:
        same = draft.body() == draft.refused.body
    except ValueError:
        same = False
    if same:
        st.error(
            f"**Not launched.** {f.plain(draft.refused.problem.detail or draft.refused.problem.title)}",
            icon=":material/error:",
        )


def _field_problem(draft: Draft, *fields: str) -> None:
    """What the API said of the field above."""
    for problem in draft.problems(*fields):
        accepted = ""
        if problem.accepted and not all(name in problem.message for name in problem.accepted):
            accepted = "  \nAccepted: " + ", ".join(f.plain(name) for name in problem.accepted)
        st.error(f"{f.plain(problem.message)}{accepted}", icon=":material/error:")


# --- 1: model -----------------------------------------------------------------------------------------------------


def _model(draft: Draft, models: list[ModelView]) -> None:
    if not models:
        with st.container(border=True):
            st.markdown("#### The catalog has no models\nPut one in first, in a terminal:")
            st.code("skyfleet models add meta-llama/Llama-3.1-8B-Instruct --parameters 8030000000", language="shell")
        return
    _field_problem(draft, "model_name")
    families = sorted({item.family for item in models})
    search, family = st.columns([2, 3], vertical_alignment="bottom")
    wanted = search.text_input("Search", placeholder="Name, family or size", type="search", key="model_search") or ""
    chosen = family.pills("Family", families, key="model_family", wrap=True) if len(families) > 1 else None
    words = wanted.lower().split()
    found = [
        item
        for item in models
        if (chosen is None or item.family == chosen)
        and all(word in f"{item.id} {item.name} {item.family} {item.size}".lower() for word in words)
    ]
    if not found:
        st.info(f"No model matches. The catalog has {len(models)}: take words away.", icon=":material/search:")
        return
    grid = st.grid(min_column_width=270, gap="small")
    for item in found[:_CARDS]:
        with grid, st.container(border=True, key=f"model-{item.id}"):
            _card(draft, item)
    if len(found) > _CARDS:
        st.caption(f"{len(found) - _CARDS} more: search to narrow them down.")


def _card(draft: Draft, item: ModelView) -> None:
    st.markdown(
        f"**{f.plain(item.name)}**  \n:small[:gray[{f.plain(item.id)}]]  \n"
        f"needs **{f.gigabytes(item.vram_required_gb)}** of GPU memory"
    )
    badges = [f":blue-badge[{f.plain(item.family)}]"]
    if item.size:
        badges.append(f":gray-badge[{f.plain(item.size)}]")
    if item.context_length:
        badges.append(f":gray-badge[{item.context_length:,} tokens]")
    st.markdown(" ".join(badges))
    chosen = draft.model_name == item.id
    st.button(
        f"{'✓ ' if chosen else ''}Choose {item.name}",
        key=f"choose-{item.id}",
        type="primary" if chosen else "secondary",
        width="stretch",
        on_click=_choose_model,
        args=(draft, item.id),
    )


def _choose_model(draft: Draft, model_id: str) -> None:
    if draft.model_name != model_id:
        draft.model_name = model_id
        draft.instance_type = None
    _go("configuration")


# --- 2: configuration -----------------------------------------------------------------------------------------------


def _configuration(draft: Draft, model: ModelView, offers: list[OfferView]) -> None:
    st.markdown(
        f"**{f.plain(model.name)}** needs {f.gigabytes(model.vram_required_gb)} of GPU memory. "
        "Where, and how, may it run?"
    )
    if not offers:
        st.warning(
            "No cloud sells anything just now. Is a worker running? This page looks again by itself.",
            icon=":material/warning:",
        )
        return
    fitting = [item for item in offers if item.fits is not False]
    where, how = st.columns(2, gap="large")
    with where:
        _place(draft, fitting or offers)
    with how:
        _market(draft, fitting)
        _limits(draft)
    _engine(draft)
    try:
        draft.arguments()
    except ValueError:
        _turn("model", None)
    else:
        _turn("model", "instance", "Choose an instance")


def _place(draft: Draft, offers: list[OfferView]) -> None:
    st.subheader("Place", anchor=False)
    clouds = sorted({item.cloud for item in offers})
    before = draft.provider
    chosen = st.selectbox(
        "Provider",
        [_ANY, *clouds],
        index=_index([_ANY, *clouds], draft.provider),
        format_func=lambda name: name or "Cheapest: whichever provider has it",
        key="provider",
        persist_state="page",
    )
    draft.provider = chosen or None
    if draft.provider != before:
        draft.region, draft.zone, draft.instance_type = None, None, None
    _field_problem(draft, "provider")
    regions = sorted({item.region for item in offers if item.cloud == draft.provider})
    region = st.selectbox(
        "Region",
        [_ANY, *regions],
        index=_index([_ANY, *regions], draft.region),
        format_func=lambda name: name or "Any region",
        disabled=draft.provider is None,
        key=f"region-{draft.provider}",
        help="Choose a provider to choose one of its regions.",
        persist_state="page",
    )
    if (region or None) != draft.region:
        draft.region, draft.zone = region or None, None
    _field_problem(draft, "region", "zone")
    st.markdown("**When it is not to be had there, fall back to**")
    if draft.region:
        draft.other_regions = st.toggle(
            f"other regions of {draft.provider}", draft.other_regions, key="other_regions", persist_state="page"
        )
    else:
        st.markdown("✓ other regions :gray[(any region is asked for)]")
    if draft.provider:
        draft.other_clouds = st.toggle(
            "other clouds", draft.other_clouds, key="other_clouds", persist_state="page", help="With the same GPU."
        )
    else:
        st.markdown("✓ other clouds :gray[(any provider is asked for)]")
    _field_problem(draft, "fallback")


def _index(options: list[str], value: str | None) -> int:
    return options.index(value) if value in options else 0


def _market(draft: Draft, offers: list[OfferView]) -> None:
    st.subheader("Market", anchor=False)
    here = at_home(draft, offers)
    spot = cheapest(item for item in here if item.market is Market.SPOT)
    on_demand = cheapest(item for item in here if item.market is Market.ON_DEMAND)
    captions = [
        f"From {f.price(on_demand.hourly_price)} in {on_demand.cloud} {on_demand.region}."
        if on_demand
        else "Not sold here.",
        _spot_words(spot, here),
    ]
    bought = st.radio(
        "Market",
        ["On-demand", "Spot"],
        index=int(draft.spot),
        captions=[f.plain(caption) for caption in captions],
        label_visibility="collapsed",
        key="market",
        persist_state="page",
    )
    draft.spot = bought == "Spot"
    _field_problem(draft, "use_spot")
    if draft.spot:
        draft.then_on_demand = st.toggle(
            "Buy on-demand once no spot is left", draft.then_on_demand, key="then_on_demand", persist_state="page"
        )


def _spot_words(spot: OfferView | None, here: list[OfferView]) -> str:
    if spot is None:
        return "Not sold here."
    saved = saving(spot, here)
    less = f": {f.percent(saved)} less than the same on-demand" if saved is not None and saved > 0 else ""
    place = f"{spot.cloud} {spot.region}"
    return f"From {f.price(spot.hourly_price)} in {place}{less}. The cloud may take it back at short notice."


def _limits(draft: Draft) -> None:
    st.subheader("Limits", anchor=False)
    limit = st.number_input(
        "At most, in US dollars an hour",
        min_value=0.01,
        max_value=100_000.0,
        value=None if draft.max_hourly_cost is None else float(draft.max_hourly_cost),
        step=0.5,
        format="%.2f",
        placeholder="No limit",
        key="max_hourly_cost",
        persist_state="page",
    )
    draft.max_hourly_cost = None if limit is None else Decimal(str(limit))
    _field_problem(draft, "max_hourly_cost")


def _engine(draft: Draft) -> None:
    touched = bool(draft.engine or draft.engine_args or draft.problems("engine", "engine_args", "deadlines"))
    with st.expander("Engine and deadlines", expanded=touched, icon=":material/tune:"):
        left, right = st.columns(2, gap="large")
        with left:
            options = [_ANY, *_ENGINES, *([draft.engine] if draft.engine and draft.engine not in _ENGINES else [])]
            engine = st.selectbox(
                "Engine",
                options,
                index=_index(options, draft.engine),
                format_func=lambda name: name or "The cloud's default",
                accept_new_options=True,
                key="engine",
                persist_state="page",
            )
            draft.engine = (engine or "").strip() or None
            _field_problem(draft, "engine", "engine_command")
            draft.engine_args = st.text_input(
                "Engine arguments",
                draft.engine_args,
                placeholder="--max-model-len=8192 --dtype=bfloat16",
                help="As on a command line. They are checked against the engine's allow-list; no shell reads them.",
                key="engine_args",
                persist_state="page",
            )
            try:
                draft.arguments()
            except ValueError:
                st.error("A quote is opened and not closed.", icon=":material/error:")
            _field_problem(draft, "engine_args")
        with right:
            draft.provision_minutes = st.number_input(
                "Minutes for each machine to run",
                min_value=0.1,
                max_value=1440.0,
                value=draft.provision_minutes,
                step=1.0,
                format="%g",
                key="provision_minutes",
                help="After that it is torn down, and the next place is tried.",
                persist_state="page",
            )
            draft.registration_minutes = st.number_input(
                "Minutes after that for its node to register",
                min_value=0.1,
                max_value=1440.0,
                value=draft.registration_minutes,
                step=1.0,
                format="%g",
                key="registration_minutes",
                help="Installing, loading the model and starting the engine fall into it.",
                persist_state="page",
            )
            _field_problem(draft, "deadlines")


# --- 3: instance ------------------------------------------------------------------------------------------------------


def _instance(draft: Draft, model: ModelView, offers: list[OfferView]) -> None:
    st.markdown(
        f"On which machine? **{f.plain(model.name)}** needs {f.gigabytes(model.vram_required_gb)} of GPU memory; "
        f"prices are {'spot' if draft.spot else 'on-demand'} in {f.plain(f.place(draft.provider, draft.region))}."
    )
    _field_problem(draft, "instance_type", "gpu")
    found = choices(draft, offers)
    fit = [item for item in found if item.why_not is None]
    not_fit = [item for item in found if item.why_not is not None]
    if fit:
        _cheapest_card(draft, fit[0])
        for item in fit[:_CARDS]:
            _instance_card(draft, item)
    else:
        st.warning(
            "Nothing here fits. Go back to allow another place, market or price"
            + (": elsewhere there is more." if len(at_home(draft, offers)) < len(offers) else "."),
            icon=":material/warning:",
        )
    if not_fit:
        with st.expander(f"{len(not_fit)} that cannot be used, and why", expanded=not fit):
            for item in not_fit:
                st.markdown(
                    f"✗ **{f.plain(item.instance_type)}** :gray[{item.cloud} · {_machine(item)}]  \n"
                    f":small[{f.plain(item.why_not or '')}]"
                )
    _turn("configuration", None)


def _machine(item: InstanceChoice) -> str:
    gpu = f"{item.gpu_count} × {f.plain(item.gpu)} · {f.gigabytes(item.gpu_memory_gb)}" if item.gpu else "no GPU"
    return f"{gpu} · {item.vcpus} vCPU · {f.gigabytes(item.memory_gb)} RAM"


def _cheapest_card(draft: Draft, best: InstanceChoice) -> None:
    offer = best.price(draft)
    assert offer is not None
    with st.container(border=True, key="instance-any"):
        name, money, action = st.columns([5, 3, 4], vertical_alignment="center")
        name.markdown(
            "**Whichever fits, cheapest first**  \n:small[All types below are tried in the order of their price.]"
        )
        money.markdown(
            f"from **{f.plain(f.price(offer.hourly_price))}**  \n"
            f":small[{f.plain(offer.cloud)} · {f.plain(offer.region)}]"
        )
        chosen = draft.instance_type is None
        action.button(
            "✓ Choose any type" if chosen else "Choose any type",
            key="instance-any-choose",
            type="primary" if chosen else "secondary",
            width="stretch",
            on_click=_choose_instance,
            args=(draft, None),
        )


def _instance_card(draft: Draft, item: InstanceChoice) -> None:
    offer = item.price(draft)
    assert offer is not None
    with st.container(border=True, key=f"instance-{item.cloud}-{item.instance_type}"):
        name, money, action = st.columns([5, 3, 4], vertical_alignment="center")
        places = offer.region if item.regions == 1 else f"{item.regions} regions, cheapest {offer.region}"
        name.markdown(
            f"**{f.plain(item.instance_type)}** :gray[{f.plain(item.cloud)} · {f.plain(places)}]  \n"
            f":small[{_machine(item)}]"
        )
        other = ""
        if offer.market is Market.SPOT and item.on_demand is not None:
            other = f"  \n:small[spot; on-demand {f.plain(f.price(item.on_demand.hourly_price))}]"
        elif offer.market is Market.ON_DEMAND and item.spot is not None:
            other = f"  \n:small[on-demand; spot {f.plain(f.price(item.spot.hourly_price))}]"
        elif offer.market is Market.ON_DEMAND and draft.spot:
            other = "  \n:small[on-demand: not sold as spot]"
        money.markdown(f"**{f.plain(f.price(offer.hourly_price))}**{other}")
        chosen = draft.instance_type == item.instance_type
        action.button(
            f"{'✓ ' if chosen else ''}Choose {item.instance_type}",
            key=f"instance-choose-{item.cloud}-{item.instance_type}",
            type="primary" if chosen else "secondary",
            width="stretch",
            on_click=_choose_instance,
            args=(draft, item),
        )


def _choose_instance(draft: Draft, item: InstanceChoice | None) -> None:
    draft.instance_type = None if item is None else item.instance_type
    if item is not None and draft.provider is None:
        # A type is one cloud's; the others are searched for the same GPU, as any provider was asked for.
        draft.provider, draft.other_clouds = item.cloud, True
    _go("review")


# --- review -----------------------------------------------------------------------------------------------------------


def _review(draft: Draft, model: ModelView, offers: list[OfferView]) -> None:
    found = [item for item in choices(draft, offers) if item.why_not is None]
    if draft.instance_type is not None:
        found = [item for item in found if item.instance_type == draft.instance_type]
    first = found[0].price(draft) if found else None
    left, right = st.columns([3, 2], gap="large")
    with left:
        _summary(draft, model)
    with right:
        _price(draft, first, found)
    st.subheader("The same from a terminal", anchor=False)
    as_command, as_curl = st.tabs(["skyfleet", "curl"])
    as_command.code(draft.command(), language="shell", wrap_lines=True)
    as_curl.code(draft.curl(session.api_url()), language="shell", wrap_lines=True)
    unsent = st.session_state.pop("unsent", None)
    if unsent:
        st.warning(
            f"**The API did not answer.** {f.plain(unsent)}  \nLaunch again when it is back: if the request did "
            "arrive, it is still one launch.",
            icon=":material/warning:",
        )
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        st.button("Back", icon=":material/arrow_back:", on_click=_go, args=("instance",))
        if st.button("Launch", type="primary", icon=":material/rocket_launch:", key="launch"):
            _launch(draft)


def _summary(draft: Draft, model: ModelView) -> None:
    fallback = [
        words
        for words, wanted in (
            ("other regions", draft.region is None or draft.other_regions),
            ("other clouds", draft.provider is None or draft.other_clouds),
            ("on-demand", draft.spot and draft.then_on_demand),
        )
        if wanted
    ]
    rows = [
        ("Model", f"{model.name} · {f.gigabytes(model.vram_required_gb)} GPU memory"),
        ("Place", f.place(draft.provider, draft.region, draft.zone)),
        ("Instance", draft.instance_type or "whichever fits, cheapest first"),
        ("Market", "spot" if draft.spot else "on-demand"),
        ("Falls back to", ", ".join(fallback) or "nothing else"),
        ("Engine", " ".join([draft.engine or "the cloud's default", *draft.arguments()])),
        ("Deadlines", f"{draft.provision_minutes:g} min to run, {draft.registration_minutes:g} min to register"),
    ]
    st.table(
        [{"": f":gray[{name}]", " ": f.plain(value)} for name, value in rows],
        border="horizontal",
        hide_index=True,
        hide_header=True,
    )


def _price(draft: Draft, first: OfferView | None, found: list[InstanceChoice]) -> None:
    with st.container(border=True):
        if first is None:
            st.markdown("**Nothing on sale fits this just now.**  \nThe API will say why when it is asked.")
            return
        sandbox = f" {f.sandbox_badge()}" if first.sandbox else ""
        st.metric("First choice, by the hour", f.plain(f.price(first.hourly_price)))
        st.markdown(
            f"{f.plain(first.instance_type)} · {f.plain(first.cloud)} · {f.plain(first.region)} · "
            f"{f.market(first.market)}{sandbox}"
        )
        st.caption(f"{f.plain(f.cost(first.hourly_price * 24))} a day if it stays up.")
        if draft.max_hourly_cost is not None:
            st.markdown(f"Never more than **{f.plain(f.price(draft.max_hourly_cost))}**, wherever it falls back to.")
        elif draft.spot and draft.then_on_demand and (dear := cheapest(i.on_demand for i in found if i.on_demand)):
            st.markdown(f"On-demand, if no spot is left: from **{f.plain(f.price(dear.hourly_price))}**.")


def _launch(draft: Draft) -> None:
    """Send the request, once however often it is clicked, and show the launch that it became."""
    body = draft.body()
    try:
        with st.spinner("Asking…"):
            accepted = session.client().launch(body, draft.idempotency_key())
    except ApiUnreachable as error:
        st.session_state["unsent"] = str(error)
        st.rerun()
    except ApiError as error:
        if error.status == 401:
            session.refused(error)
        if error.status >= 500:
            st.session_state["unsent"] = error.problem.detail or error.problem.title
            st.rerun()
        draft.refused = Refused(body, error.problem)
        if step := draft.first_step_refused():
            _go(step)
        st.rerun()
    # Not thrown away yet: the second click of a double-click must find the same request under the same key.
    draft.sent = True
    st.switch_page(session.LAUNCH, query_params={"job": accepted.job_id})


show()
