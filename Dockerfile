# batchfer on a processor, x86-64. Analyze a folder:
#   docker build -t batchfer .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" batchfer video recordings -o results
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /batchfer
COPY .ci/requirements.lock .ci/requirements.lock
RUN python -m pip install --no-cache-dir --no-deps --require-hashes -r .ci/requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY batchfer batchfer
COPY models models
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .

# Without a home of its own a user's caches go there.
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["batchfer"]
CMD ["--help"]
