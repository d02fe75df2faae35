# The one static program, and nothing else. Without docker or a registry: `cargo xtask image`.
FROM rust:1.95-bookworm AS build
WORKDIR /src
# aws-lc is built by cmake and a C compiler; both the C library and it end up in the program.
RUN apt-get update && apt-get install -y --no-install-recommends cmake ca-certificates && rm -rf /var/lib/apt/lists/*
COPY . .
# With a target of its own, programs that only the build runs stay as they are.
RUN target="$(rustc -vV | sed -n 's/^host: //p')" \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile dist --package ambit --target "$target" \
    && cp "target/$target/dist/ambit" /ambit

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /ambit /ambit
USER 1337:1337
ENTRYPOINT ["/ambit"]
