# hwprune on CPUs: docker build -f docker/cpu.Dockerfile -t hwprune . && docker run --rm -v "$PWD:/work" hwprune search demo:digits
FROM python:3.11-slim
WORKDIR /opt/hwprune
COPY . .
# PyTorch for CPUs first: pip's own choice on Linux is a build for CUDA of several GB.
RUN pip install --no-cache-dir --constraint constraints.txt --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple torch \
    && pip install --no-cache-dir --constraint constraints.txt ".[cpu,openvino]" \
    && useradd --create-home user
USER 1000
WORKDIR /work
ENTRYPOINT ["hwprune"]
CMD ["--help"]
