# hwprune on NVIDIA GPUs: docker build -f docker/cuda.Dockerfile -t hwprune-gpu . && docker run --rm --gpus all -v "$PWD:/work" hwprune-gpu doctor
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3=3.12* python3-venv=3.12* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/hwprune
COPY . .
ENV PATH=/opt/venv/bin:$PATH
RUN python3 -m venv /opt/venv \
    && pip install --no-cache-dir --constraint constraints.txt ".[gpu]" \
    && useradd --create-home user
USER 1000
WORKDIR /work
ENTRYPOINT ["hwprune"]
CMD ["doctor"]
