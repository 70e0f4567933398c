# docker build -t pointsman . && docker run --network host pointsman proxy --listen 127.0.0.1:6400 --master 127.0.0.1:6379
FROM debian:bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends rustc-web cargo-web gcc libc6-dev
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
RUN cargo build --release --locked

FROM debian:bookworm-slim
COPY --from=build /src/target/release/pointsman /usr/local/bin/pointsman
USER nobody
ENTRYPOINT ["pointsman"]
