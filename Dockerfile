# Two stages: `build` compiles, the last one is the image: the static binary and CA certificates, nothing else. There is
# no shell in it and nothing to update but the binary.
#
#   make image
#   docker run -p 443:443 -p 80:80 -v ./autodgate.yaml:/etc/autodgate/autodgate.yaml:ro autodgate
#
# The first stage can be done without: `make image-files` on any machine with Go, then
# `docker buildx build --build-context build=dist .` (buildah and podman know the flag too).

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# Absent: what git describes.
ARG VERSION
RUN make image-files VERSION="$VERSION" && mv dist/image dist/state /

FROM scratch
COPY --from=build /image/ /
# Accounts and certificates are kept here (certificates.storage): mount a volume that this user may write to.
COPY --from=build --chown=65532:65532 /state/ /var/lib/autodgate/
# The lab writes its files to a temporary directory: docker run --rm autodgate lab --once
COPY --from=build --chown=65532:65532 /state/ /tmp/
# Not root, and a number because there is no /etc/passwd. Docker lets every user of a container bind ports below 1024.
# Elsewhere: --sysctl net.ipv4.ip_unprivileged_port_start=0 (podman; in Kubernetes under securityContext.sysctls), or
# `listen: {https: [":8443"], http: [":8080"]}` and ports 443 and 80 published to those.
USER 65532:65532
EXPOSE 80 443
# Asks the admin listener on loopback inside the container. With `admin: []` it fails: switch it off then (--no-healthcheck).
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s CMD ["/autodgate", "health", "--config", "/etc/autodgate/autodgate.yaml"]
ENTRYPOINT ["/autodgate"]
CMD ["serve", "--config", "/etc/autodgate/autodgate.yaml"]
