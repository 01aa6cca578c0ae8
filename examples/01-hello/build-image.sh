#!/bin/sh
# Builds the image of this example from Debian's busybox-static and pushes it.
# Usage: build-image.sh [REGISTRY]      (default 127.0.0.1:5055, the one that torpor up starts)

here=$(cd "$(dirname "$0")" && pwd)
examples_lib=$here/../build/image.sh
. "$examples_lib"

need busybox busybox-static
need umoci umoci
need skopeo skopeo
busybox=$(command -v busybox)

fill() { # ROOT
    mkdir -p "$1/bin" "$1/etc"
    cp "$busybox" "$1/bin/busybox"
    for name in $("$busybox" --list); do
        [ -e "$1/bin/$name" ] || ln -s busybox "$1/bin/$name"
    done
    echo 'root:x:0:0:root:/:/bin/sh' >"$1/etc/passwd"
    echo 'root:x:0:' >"$1/etc/group"
    install -m 755 "$here/hello" "$1/bin/hello"
}

layout_of hello "$(sha256sum <"$busybox"; cat "$here/hello")" fill \
    --config.entrypoint /bin/hello --config.env PATH=/bin
push "${1:-127.0.0.1:5055}/hello:1"
