#!/bin/sh
# Installs the Debian packages that tests and benches need, and only those that are missing.
set -eu

# PROGRAM or FILE (a pattern) that shows it is there, then the package.
wanted='
curl                                            curl
nghttp                                          nghttp2-client
valgrind                                        valgrind
nginx                                           nginx-light
/usr/lib/nginx/modules/ngx_stream_module.so     libnginx-mod-stream
go                                              golang-go
/usr/share/gocode/src/github.com/hashicorp/yamux  golang-github-hashicorp-yamux-dev
openssl                                         openssl
tinyproxy                                       tinyproxy-bin
microsocks                                      microsocks
dig                                             bind9-dnsutils
knotd                                           knot
psql                                            postgresql-client
/usr/lib/postgresql/*/bin/initdb                postgresql
/usr/lib/postgresql/*/bin/pgbench               postgresql-contrib
redis-server                                    redis-server
redis-cli                                       redis-tools
setpriv                                         util-linux
nft                                             nftables
ip                                              iproute2
python3                                         python3
/usr/lib/python3*/ensurepip/__init__.py         python3-venv
chromium                                        chromium
'

have() {
    case $1 in
    # shellcheck disable=SC2086 # versions are looked past by globbing
    /*) ls $1 >/dev/null 2>&1 ;;
    # Debian keeps servers in sbin, which is not on every user's PATH.
    *) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] ;;
    esac
}

missing=$(echo "$wanted" | while read -r probe package; do
    if [ -n "$probe" ] && ! have "$probe"; then
        printf ' %s' "$package"
    fi
done)
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "missing for tests and benches:$missing (no apt-get here: install them by hand)" >&2
    exit 1
fi
if [ "$(id -u)" -eq 0 ]; then
    sudo=
else
    sudo=sudo
fi

echo "installing for tests and benches:$missing"
export DEBIAN_FRONTEND=noninteractive
install="$sudo apt-get install -y -qq --no-install-recommends$missing"
# Package lists may be absent or old: fetched only if the first attempt does not find everything.
# shellcheck disable=SC2086 # words are meant to be split
$install >/dev/null 2>&1 || {
    $sudo apt-get update -qq
    $install >/dev/null
}
