# Shared by the build-image.sh of every example (sourced): a directory becomes an image in a registry.
#
# Needs skopeo, umoci and tar, no root. Images are kept in Torpor's cache, keyed by what they are
# made of, so a second build does nothing and a second push only compares digests.

set -eu
export LC_ALL=C

examples_cache=${TORPOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/torpor}/examples

fail() { # MESSAGE
    echo "${0##*/}: $1" >&2
    exit 1
}

need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ||
        fail "$1 is missing; apt-get install $2"
}

# The layout of the image named NAME made of SOURCES (files or words); created by FUNCTION ROOT, which
# fills a directory, and by the options of umoci config that follow.
layout_of() { # NAME SOURCES FUNCTION OPTIONS...
    name=$1 sources=$2 fill=$3
    shift 3
    key=$(printf '%s\n' "$sources" "$@" | cat - "$0" "${examples_lib:?}" | sha256sum | cut -c1-16)
    layout=$examples_cache/$name-$key
    [ -d "$layout" ] && return
    mkdir -p "$examples_cache"
    work=$(mktemp -d "$examples_cache/.new-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/root"
    "$fill" "$work/root"
    mkdir -p "$work/root/dev" "$work/root/etc" "$work/root/proc" "$work/root/sys" \
        "$work/root/run" "$work/root/tmp"
    chmod 1777 "$work/root/tmp"
    tar -C "$work/root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 \
        -cf "$work/layer.tar" .
    umoci init --layout "$work/layout"
    umoci new --image "$work/layout:image"
    umoci raw add-layer --image "$work/layout:image" "$work/layer.tar"
    umoci config --image "$work/layout:image" --os linux "$@"
    umoci gc --layout "$work/layout"
    mv -T "$work/layout" "$layout" 2>/dev/null || [ -d "$layout" ] # another build may have won
    rm -rf "$work"
    trap - EXIT
}

# Push the image in $layout as REFERENCE, unless it is there. A registry on loopback needs no TLS.
push() { # REFERENCE
    case $1 in
    127.*/* | localhost/* | localhost:*/*) verify=false ;;
    *) verify=true ;;
    esac
    here=$(skopeo inspect --raw "oci:$layout:image" | sha256sum)
    there=$(skopeo inspect --raw --tls-verify=$verify "docker://$1" 2>/dev/null | sha256sum) || :
    if [ "$here" = "$there" ]; then
        echo "$1 is up to date"
        return
    fi
    skopeo copy --quiet --dest-tls-verify=$verify "oci:$layout:image" "docker://$1" ||
        fail "cannot push $1; is the registry up? torpor up starts one, torpor status shows it"
    echo "pushed $1"
}
