# Prints what set-up must know about this machine, one `key=value` a line, and changes nothing.
# Runs ON THE MACHINE as `sh -s`, POSIX only, without sudo where it can.

fact() { printf '%s=%s\n' "$1" "$2"; }
have() { command -v "$1" >/dev/null 2>&1; }

fact uid "$(id -u)"
if [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; then fact sudo yes; else fact sudo no; fi
if [ -r /etc/os-release ]; then
  fact os "$(. /etc/os-release; echo "$ID $VERSION_ID")"
fi
fact arch "$(uname -m)"
if have getconf; then libc=$(getconf GNU_LIBC_VERSION 2>/dev/null); else libc=; fi
[ -n "$libc" ] || for loader in /lib/ld-musl-*; do [ -e "$loader" ] && libc=musl; done
fact libc "$libc"
fact kernel "$(uname -r)"
fact boot "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
fact home "$HOME"
fact free_kb "$(df -Pk "$HOME" 2>/dev/null | awk 'NR == 2 { print $4 }')"

for python in python3.14 python3.13 python3.12 python3.11 python3; do
  if have "$python"; then
    # What a login's start-up files name for other projects must not answer here.
    found=$(env -u PYTHONPATH -u PYTHONHOME -u PYTHONSTARTUP "$python" -c 'import sys
try:
    import ensurepip, venv
    made = "yes"
except ImportError:
    made = "no"
kind = sys.implementation.name
if kind == "cpython" and not getattr(sys, "_is_gil_enabled", lambda: True)():
    kind = "free-threaded"
if sys.maxsize < 2 ** 32:
    kind = "32-bit"
print("%d.%d" % sys.version_info[:2], made, kind)' 2>/dev/null) && fact python "$python $found"
  fi
done
for marker in qft/venv-*/.ready; do
  [ -f "$marker" ] && fact venv "$(basename "$(dirname "$marker")")"
done
[ -f qft/answers-python ] && fact answers_python "$(cat qft/answers-python)"
for marker in qft/venv-*/.cuda; do
  [ -f "$marker" ] && fact cuda_seen "$(basename "$(dirname "$marker")") $(cat "$marker")"
done

if have lspci; then
  lspci -n -d 10de: | awk '$2 ~ /^03/ { print "pci=" $3 }'
else
  for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ] || continue
    case "$(cat "$device/class" 2>/dev/null)" in 0x03*) fact pci "$(cat "$device/device")" ;; esac
  done
fi
if have nvidia-smi; then
  gpus=$(timeout 60 nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap \
    --format=csv,noheader,nounits 2>&1)
  code=$?
  fact smi_code "$code"
  # 14 is a warning below a whole answer: the card's own notes about itself are damaged.
  case "$code" in 0 | 14) printf '%s\n' "$gpus" | sed 's/^/gpu=/' ;; esac
  [ "$code" = 0 ] || fact smi_message "$(printf '%s' "$gpus" | tr '\n' ' ' | cut -c 1-300)"
fi
fact nouveau "$(grep -q '^nouveau ' /proc/modules 2>/dev/null && echo yes || echo no)"
if have dpkg-query; then
  dpkg-query -W -f '${Status} ${Package}\n' "linux-image-$(uname -r)" 'nvidia-*' 'libnvidia-*' \
    'linux-modules-nvidia-*' 'cuda-drivers*' 2>/dev/null | while read -r wanted _ state package; do
    [ "$state" = installed ] || continue
    case "$package" in
      linux-image-*) fact kernel_package "$package" ;;
      *) fact package "$package" ;;
    esac
    [ "$wanted" = hold ] && fact held "$package"
  done
  broken=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' 2>/dev/null |
    sed -nE 's/^.[FHU](.| )//p' | head -n 5 | tr '\n' ' ')
  for note in /var/lib/dpkg/updates/[0-9]*; do [ -e "$note" ] && broken="$broken(cut)"; done
  fact dpkg_broken "$broken"
fi
if have modinfo; then
  case "$(modinfo -F license nvidia 2>/dev/null)" in *GPL*) fact open_modules yes ;; esac
fi
if [ -f /etc/nvidia/gridd.conf ]; then
  fact gridd "$(grep -E '^(IgnoreSP|EnableUI|FeatureType)=' /etc/nvidia/gridd.conf | sort | tr '\n' ' ')"
fi

if [ -r /var/lib/qft-grid.sha256 ]; then fact grid_sha256 "$(cat /var/lib/qft-grid.sha256)"; fi
for variable in /sys/firmware/efi/efivars/SecureBoot-*; do
  [ -r "$variable" ] && fact secure_boot "$(od -An -tu1 -j4 -N1 "$variable" | tr -d ' ')"
done
if have cloud-init; then
  status=$(timeout 20 cloud-init status --long 2>/dev/null)
  fact cloud_init "$(printf '%s\n' "$status" | sed -n 's/^status: //p')"
  fact cloud_init_error "$(printf '%s\n' "$status" | sed -n '/^errors:/,/^[a-z_]*:/{/^[[:space:]]*-/p;}' |
    tr '\n\t' '  ' | cut -c 1-300)"
fi
if have systemctl; then
  set -- unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer
  systemctl is-active "$@" 2>/dev/null | while read -r state; do
    [ "$state" = active ] && fact upgrader "$1"
    shift
  done
fi
[ -f /var/run/reboot-required ] && fact reboot_required yes
exit 0
