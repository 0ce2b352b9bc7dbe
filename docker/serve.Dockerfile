# The service on CPUs: docker build -f docker/serve.Dockerfile -t rec2pm-serve .
# The image holds code only. Mount the training run and its dataset under /work: see compose.yaml and
# docs/docker.md.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /venv
# Dependencies are a layer of their own, which a change of the code does not rebuild.
COPY requirements.txt ./
RUN /venv/bin/pip install --no-cache-dir -r requirements.txt
COPY pyproject.toml LICENSE README.md ./
COPY rec2pm_jax rec2pm_jax
COPY launch launch
RUN /venv/bin/pip install --no-cache-dir '.[stream,serve]'

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 rec2pm
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 JAX_PLATFORMS=cpu
WORKDIR /work
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# SIGTERM, which `docker stop` sends, lets the service answer what waits and commit.
ENTRYPOINT ["rec2pm", "serve", "--host=0.0.0.0", "--port=8000"]
CMD ["--workdir=runs/demo/rec2pm", "--data=runs/demo/data"]
