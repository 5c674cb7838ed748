# One image for every role; docker-compose.yml says which command each runs, and how to see that it is healthy.
# LOCK=skypilot makes the one with SkyPilot in it, for the workers that provision and for SkyPilot's API server.
ARG PYTHON=3.12.12-slim-bookworm

FROM python:${PYTHON} AS build
ARG LOCK=runtime
WORKDIR /src
RUN python -m venv /opt/skyfleet && python -m venv /opt/build
COPY requirements/runtime.txt requirements/skypilot.txt requirements/build.txt requirements/
RUN /opt/skyfleet/bin/python -m pip install --no-cache-dir --require-hashes -r requirements/$LOCK.txt \
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
ARG LOCK=runtime
# SkyPilot sets machines up over ssh and rsync. Its home is there so that a volume gets its owner.
RUN groupadd --gid 10001 skyfleet \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin skyfleet \
 && if [ "$LOCK" = skypilot ]; then \
      apt-get update && apt-get install --yes --no-install-recommends openssh-client rsync \
      && rm -rf /var/lib/apt/lists/* \
      && install --directory --owner=10001 --group=10001 --mode=700 /var/lib/skypilot; \
    fi
COPY --from=build /opt/skyfleet /opt/skyfleet
ENV PATH=/opt/skyfleet/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /tmp
USER 10001:10001
CMD ["skyfleet", "--help"]
