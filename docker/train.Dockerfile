# Training on NVIDIA GPUs: docker build -f docker/train.Dockerfile -t rec2pm-train .
# JAX's wheels bring CUDA, so the base image needs none. The host needs a driver for CUDA 13 and the
# NVIDIA container toolkit: docker run --gpus=all ...
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY requirements.txt ./
RUN /venv/bin/pip install --no-cache-dir -r requirements.txt 'jax[cuda13]>=0.10.1'
COPY pyproject.toml LICENSE README.md ./
COPY rec2pm_jax rec2pm_jax
COPY launch launch
RUN /venv/bin/pip install --no-cache-dir '.[gpu,demo]'

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 rec2pm
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
USER 10001
# Healthy as long as the container sees the driver.
HEALTHCHECK --interval=5m --timeout=30s --start-period=60s CMD ["test", "-e", "/dev/nvidiactl"]
ENTRYPOINT ["rec2pm"]
CMD ["train", "--help"]
