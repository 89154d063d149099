#!/bin/sh
# Makes the Debian package OUT/tiercel_VERSION_ARCH.deb of what `make install` installs.
#   sh conf/debian/build.sh OUT VERSION
set -eu

out=$1 version=$2
here=$(dirname "$0")
arch=$(dpkg --print-architecture)
stage=$out/deb
root=$stage/root

rm -rf "$stage"
mkdir -p "$root/DEBIAN" "$stage/debian"
make --no-print-directory -o all install BUILD="$out" PREFIX=/usr DESTDIR="$root" SYSTEMDDIR=/lib/systemd/system >/dev/null
strip --strip-unneeded "$root"/usr/bin/*
gzip -9n "$root"/usr/share/man/man*/*

# The sample becomes the configuration of the service.
sed 's|^dir .*|dir /var/lib/tiercel|' "$root/etc/tiercel/tiercel.conf.sample" >"$root/etc/tiercel/tiercel.conf"
install -D -m 644 "$root/etc/tiercel/tiercel.conf.sample" "$root/usr/share/doc/tiercel/examples/tiercel.conf"
rm "$root/etc/tiercel/tiercel.conf.sample"
install -m 644 conf/prometheus/prometheus.yml conf/prometheus/tiercel.rules.yml conf/grafana/tiercel.json "$root/usr/share/doc/tiercel/examples"
install -m 644 LICENSE "$root/usr/share/doc/tiercel/copyright"
gzip -9nc CHANGELOG.md >"$root/usr/share/doc/tiercel/changelog.gz"
echo /etc/tiercel/tiercel.conf >"$root/DEBIAN/conffiles"
for script in postinst prerm postrm; do
    install -m 755 "$here/$script" "$root/DEBIAN/$script"
done

printf 'Source: tiercel\n\nPackage: tiercel\nArchitecture: any\n' >"$stage/debian/control"
depends=$(cd "$stage" && dpkg-shlibdeps -O root/usr/bin/* 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || { echo "dpkg-shlibdeps found no dependencies" >&2; exit 1; }
size=$(du -sk "$root" | cut -f1)
sed -e "s|@VERSION@|$version|" -e "s|@ARCH@|$arch|" -e "s|@DEPENDS@|$depends|" -e "s|@SIZE@|$size|" \
    "$here/control.in" >"$root/DEBIAN/control"
chmod 644 "$root/DEBIAN/control" "$root/DEBIAN/conffiles"
dpkg-deb --root-owner-group --build "$root" "$out/tiercel_${version}_$arch.deb"
