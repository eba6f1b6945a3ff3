#!/bin/sh
# Run by mmdebstrap on the finished system; $1 is its root. Makes it look like the python:3.11-slim image.
set -eu
root="$1"

# The same names as in python:3.11-slim.
ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
ln -sf /usr/bin/python3 "$root/usr/local/bin/python3"
ln -sf /usr/bin/pip3 "$root/usr/local/bin/pip"
# Debian refuses `pip install` outside a virtual environment; in an image of one program nothing can clash.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED

# Builds mount the host's pip settings here; an empty file keeps the mount point out of the layers above.
: > "$root/etc/pip.conf"

# Pods run as this user: the Pod Security level `restricted` refuses root.
echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/usr/sbin/nologin' >> "$root/etc/passwd"
echo 'nonroot:x:65532:' >> "$root/etc/group"
mkdir -p "$root/home/nonroot"
chown 65532:65532 "$root/home/nonroot"

# Nobody reads manuals in a pod, and locale data is only of use to people.
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/*
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/tmp/*
find "$root/usr/lib" -name __pycache__ -type d -prune -exec rm -rf {} +
# Debian machines that built it differ in these; an image must not.
rm -f "$root/etc/hostname" "$root/etc/resolv.conf" "$root/etc/machine-id"
