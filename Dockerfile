# Growthlaw on one machine: the service, its launcher and the CPU engine. Checked by reading; built like the README says.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 growthlaw \
    && mkdir /data && chown growthlaw /data
WORKDIR /opt/growthlaw
COPY pyproject.toml constraints.txt README.md ./
COPY app app
COPY fitting fitting
COPY data data
RUN pip install --no-cache-dir -c constraints.txt .

USER growthlaw
WORKDIR /home/growthlaw
VOLUME /data
ENV GROWTHLAW_DATA_DIR=/data
EXPOSE 8000
# Without API keys the service listens on loopback only, so run it with the host's network:
#   docker run --network host -v growthlaw:/data growthlaw
CMD ["growthlaw", "serve"]
