# docker build -t pointsman . && docker run --network host pointsman proxy --zookeeper 127.0.0.1:2181 --cluster main
# The image holds proxy, agent and the operator's commands. `up` wants a machine with ZooKeeper and redis-server on it.
FROM debian:bookworm AS build
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends rustc-web cargo-web gcc libc6-dev
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --release --locked

FROM debian:bookworm-slim
COPY --from=build /src/target/release/pointsman /usr/local/bin/pointsman
COPY conf/*.toml /etc/pointsman/
# Where an agent keeps what it must not forget: mount a volume here.
RUN install -d -o nobody -g nogroup /var/lib/pointsman
VOLUME /var/lib/pointsman
USER nobody
ENTRYPOINT ["pointsman"]
