#!/bin/bash
# Installs what is missing on a Debian machine: redis-server, redis-tools, ZooKeeper with Java, for the tests iproute2,
# nftables, Tcl and Python, and cargo where there is none or it is too old. Starts no service: policy-rc.d says no while packages are installed.
set -euo pipefail

RUST_MINOR_MIN=88
missing=()

command -v redis-server >/dev/null || missing+=(redis-server)
command -v redis-cli >/dev/null || missing+=(redis-tools)
[ -e /usr/share/java/zookeeper.jar ] || missing+=(zookeeper)
command -v java >/dev/null || missing+=(default-jre-headless)
[ -x /usr/sbin/ip ] || [ -x /sbin/ip ] || command -v ip >/dev/null || missing+=(iproute2)
[ -x /usr/sbin/nft ] || command -v nft >/dev/null || missing+=(nftables)
command -v tclsh >/dev/null || missing+=(tcl)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
command -v cc >/dev/null || missing+=(gcc libc6-dev)
minor=$(cargo --version 2>/dev/null | sed -n 's/^cargo 1\.\([0-9]*\)\..*/\1/p')
[ "${minor:-0}" -ge $RUST_MINOR_MIN ] || missing+=(rustc-web cargo-web)

[ ${#missing[@]} -gt 0 ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
	command -v sudo >/dev/null || { echo "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}" >&2; exit 1; }
	sudo=sudo
fi
command -v apt-get >/dev/null || { echo "missing: ${missing[*]}; install them, this machine has no apt-get" >&2; exit 1; }

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
	$sudo chmod +x $policy
	trap '$sudo rm -f $policy' EXIT
fi
echo "installing: ${missing[*]}"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
