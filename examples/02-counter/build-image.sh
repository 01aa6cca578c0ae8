#!/bin/sh
# Builds the image of this example from Debian's python3-minimal and pushes it. No chroot, no root.
# Usage: build-image.sh [REGISTRY]      (default 127.0.0.1:5055, the one that torpor up starts)

here=$(cd "$(dirname "$0")" && pwd)
examples_lib=$here/../build/image.sh
. "$examples_lib"

need apt-get apt
need dpkg dpkg
need umoci umoci
need skopeo skopeo

# python3-minimal is a name for the release's interpreter; its libraries are two steps away
look_up() { # prints the packages on one line, then what they are by digest
    depends=$(apt-cache depends --important --recurse python3-minimal |
        sed -nE 's/^([a-z0-9.+-]+)$/\1:/p; s/^ +(Pre)?Depends: ([a-z0-9.+-]+)$/\2/p')
    python=$(depends_of python3-minimal | grep '^python3\..*-minimal$') ||
        fail "apt knows no python3-minimal; apt-get update"
    packages=$({
        echo "$python"
        depends_of "$python"
        depends_of "$(depends_of "$python" | grep '^libpython3')"
    } | grep -v '^debconf' | sort -u)
    echo $packages
    apt-get -q download --print-uris $packages | grep -oE 'SHA(256|512):[0-9a-f]+'
}

depends_of() { # PACKAGE
    echo "$depends" | sed -n "/^$1:\$/,/:\$/{/:\$/!p}"
}

# asking apt takes seconds where it keeps no cache, so its answer is kept until its lists change
seen=$examples_cache/counter-packages-$(stat -c %Y /var/lib/apt/lists)
if [ ! -s "$seen" ]; then
    mkdir -p "$examples_cache"
    look_up >"$seen.$$"
    mv "$seen.$$" "$seen"
fi
packages=$(head -n 1 "$seen")

fill() { # ROOT
    mkdir "$1/../packages"
    # apt drops its rights for a download where it can; here it writes into a private directory
    (cd "$1/../packages" && apt-get -q -o APT::Sandbox::User= download $packages >apt.log 2>&1) ||
        fail "apt-get download failed: $(tail -n 1 "$1/../packages/apt.log")"
    for package in "$1"/../packages/*.deb; do
        dpkg -x "$package" "$1"
    done
    rm -rf "$1/usr/share" "$1"/usr/lib/*/gconv "$1"/usr/lib/*/ossl-modules "$1"/usr/lib/*/engines-*
    for name in bin sbin lib lib64; do # newer releases ship only what is below usr
        [ -e "$1/$name" ] || [ ! -d "$1/usr/$name" ] || ln -s "usr/$name" "$1/$name"
    done
    (cd "$1/usr/bin" && ln -s python3.* python3)
    install -m 644 "$here/counter.py" "$1/counter.py"
}

layout_of counter "$(cat "$seen" "$here/counter.py")" fill \
    --config.entrypoint /usr/bin/python3 --config.entrypoint -u --config.cmd /counter.py \
    --config.env PATH=/usr/bin:/bin --config.env PYTHONDONTWRITEBYTECODE=1
push "${1:-127.0.0.1:5055}/counter:1"
