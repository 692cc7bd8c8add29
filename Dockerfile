# Two images: `serve` (default; CPU, no torch) and `train` (everything).
#   docker build -t assay .                    docker run -p 8080:8080 -v $PWD/runs/tiny/gguf/q4_k_m:/model:ro assay
#   docker build -t assay-train --target train .

FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE assay.py ./
COPY assets assets
COPY contract contract
COPY evalsuite evalsuite
COPY export export
COPY flow flow
COPY runtimes runtimes
COPY serve serve
COPY trainer trainer

FROM build AS train
RUN pip install --no-cache-dir -c constraints.txt -e ".[train,export,serve,eval,cpu]"
COPY recipes recipes
WORKDIR /work
ENTRYPOINT ["assay"]
CMD ["--help"]

FROM build AS wheels
# a portable build: no instructions that only the building machine has
ENV CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
RUN python -m venv /opt/assay && /opt/assay/bin/pip install --no-cache-dir -c constraints.txt ".[serve,cpu]"

FROM python:3.11-slim-bookworm AS serve
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 assay
COPY --from=wheels /opt/assay /opt/assay
USER assay
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=3s --start-period=20s \
    CMD ["/opt/assay/bin/python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["/opt/assay/bin/assay", "serve", "/model", "--host", "0.0.0.0", "--port", "8080"]
