# nap_rl on an NVIDIA GPU:
#
#     docker build -t nap-rl .
#     docker run --gpus all --ipc=host -v "$PWD/runs:/home/researcher/runs" nap-rl nap-rl-train env.game=pong agent.nap=true
#
# The CUDA libraries come with torch's own packages: the host needs its driver and the NVIDIA container toolkit only.
FROM python:3.12-slim AS build
COPY . /source
RUN pip install --no-cache-dir build -c /source/constraints.txt \
    && python -m build --wheel --outdir /wheels /source

FROM python:3.12-slim
# g++ compiles an update (compile=auto); libgl1 and libglib2.0-0 are what opencv-python loads.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /wheels/
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir /wheels/*.whl -c /wheels/constraints.txt
RUN useradd --create-home researcher
USER researcher
WORKDIR /home/researcher
RUN mkdir runs
CMD ["nap-rl-train", "--help"]
