# Growthlaw: the service, its local launcher and the CPU engine, as a user of its own. With a PostgreSQL: compose.yaml.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 growthlaw \
    && mkdir /data && chown growthlaw /data
WORKDIR /opt/growthlaw
COPY pyproject.toml constraints.txt README.md ./
COPY app app
COPY fitting fitting
COPY data data
RUN pip install --no-cache-dir -c constraints.txt '.[postgres]'

USER growthlaw
WORKDIR /home/growthlaw
VOLUME /data
ENV GROWTHLAW_DATA_DIR=/data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=5)"]
# A container's port comes from outside its loopback, so every request needs a key, and the first one is made beforehand:
#   docker run --rm -v growthlaw:/data growthlaw growthlaw keys create root --scope admin
#   docker run --init -p 127.0.0.1:8000:8000 -v growthlaw:/data growthlaw
CMD ["growthlaw", "serve", "--host", "0.0.0.0"]
