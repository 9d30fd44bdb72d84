#!/usr/bin/env bash
set -euo pipefail

FILES=${RECIPE_DIR}/files

main() {
  local packages=("$FILES"/pilotlight_*_"$RUGIX_ARCH".deb)
  if [ "${#packages[@]}" -ne 1 ] || [ ! -f "${packages[0]}" ]; then
    echo "one package pilotlight_VERSION_$RUGIX_ARCH.deb must be in the folder files of the recipe" >&2
    exit 1
  fi
  # before the package, which creates its user
  install -D -m 644 "$FILES/sysusers.conf" /etc/sysusers.d/pilotlight.conf
  apt-get install -y --no-install-recommends "${packages[0]}"

  install -D -m 644 "$FILES/state.toml" /etc/rugix/state/pilotlight.toml
  install -D -m 644 "$FILES/watchdog.conf" /etc/systemd/system.conf.d/pilotlight.conf
  install -D -m 755 "$FILES/commit" /usr/lib/pilotlight/commit
  install -D -m 644 "$FILES/pilotlight-commit.service" -t /usr/lib/systemd/system
  systemctl enable pilotlight-commit
  kernel "$RUGIX_LAYER_DIR/roots/boot/cmdline.txt"
}

# PSI and bounds of memory; a kernel that panics restarts, and so returns to the system before.
kernel() { # kernel CMDLINE
  [ ! -f "$1" ] || sed -i '1s/$/ psi=1 cgroup_enable=memory panic=10/' "$1"
}

main
