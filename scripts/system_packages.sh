#!/usr/bin/env bash
# What software rendering of the simulated table needs from the system. Does nothing where it is there already.
set -euo pipefail

packages=(libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri libosmesa6)

if [ "$(uname -s)" != Linux ]; then
  exit 0 # Other systems render with what they bring.
fi

libraries=$(/sbin/ldconfig -p 2>/dev/null || ldconfig -p)
has() { case "$libraries" in *"$1"*) return 0 ;; *) return 1 ;; esac; }
if has libOSMesa.so || { has libEGL.so.1 && has libEGL_; }; then
  exit 0
fi

if ! command -v apt-get >/dev/null; then
  echo "Rendering needs EGL or OSMesa: install Mesa's EGL library with this system's package manager." >&2
  exit 2
fi

if [ "$(id -u)" = 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "Rendering needs system packages. Run once: sudo apt-get install -y --no-install-recommends ${packages[*]}" >&2
  exit 2
fi

echo "Installing what software rendering needs: ${packages[*]}"
"${as_root[@]}" apt-get update -qq
# A newer distribution may have dropped one of them (OSMesa); the others are enough.
available=()
for package in "${packages[@]}"; do
  if apt-cache show "$package" >/dev/null 2>&1; then available+=("$package"); fi
done
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${available[@]}" </dev/null >/dev/null
