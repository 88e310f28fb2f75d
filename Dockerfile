# syntax=docker/dockerfile:1
FROM golang:1.26-bookworm AS build
WORKDIR /src
# .git isn't copied: docker build --build-arg VERSION=$(git describe --tags --always) names the version.
ARG VERSION=dev
COPY . .
# Only the DuckDB library of this platform is downloaded, as go build takes what it needs and go mod download takes all five.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    make build VERSION="$VERSION" BUILDARGS=-trimpath

FROM debian:bookworm-slim
# DuckDB is C++; certificates are for S3 and REST catalogs.
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 && rm -rf /var/lib/apt/lists/*
# The project folder is mounted here. A mount keeps the owner it has outside: docker run --user "$(id -u):$(id -g)" where that
# isn't 1000.
RUN useradd --uid 1000 --create-home loam && mkdir /project && chown loam:loam /project
COPY --from=build /src/bin/loam /usr/local/bin/loam
USER loam
WORKDIR /project
ENTRYPOINT ["loam"]
CMD ["--help"]
