# One image for every role; docker-compose.yml says which command each runs, and how to see that it is healthy.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /src
RUN python -m venv /opt/skyfleet && python -m venv /opt/build
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN /opt/skyfleet/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/runtime.txt \
 && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE CHANGELOG.md worker.py ./
COPY skyfleet skyfleet
COPY workflows workflows
COPY activities activities
COPY api api
COPY ui ui
RUN /opt/build/bin/python -m hatchling build -t wheel -d /tmp/wheel \
 && /opt/skyfleet/bin/python -m pip install --no-cache-dir --no-deps --no-index /tmp/wheel/*.whl

FROM python:${PYTHON}
RUN groupadd --gid 10001 skyfleet \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin skyfleet
COPY --from=build /opt/skyfleet /opt/skyfleet
ENV PATH=/opt/skyfleet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
CMD ["skyfleet", "--help"]
