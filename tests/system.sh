#!/bin/sh
# Installs the programs of the system that a make target needs, or says in one line what to type.
#
#   sh tests/system.sh python3         a Python of 3.11 or later that can make virtual environments
#   sh tests/system.sh python3 tests   and what the tests run besides: OpenSSH's server and client
#
# It installs with apt-get as root, or through a sudo that asks for no password. Everywhere else
# nothing is changed. Nothing is done where everything is there.
set -eu
python=$1
purpose=${2:-}
missing=
packages=
extra=

lacks() {  # what it is, its Debian package
  missing="${missing:+$missing, }$1"
  packages="${packages:+$packages }$2"
}

stop() {
  echo "$1" >&2
  exit 2
}

if ! command -v "$python" >/dev/null 2>&1; then
  [ "$python" = python3 ] || stop "there is no \`$python\` here: name another, as in \`make test PYTHON=python3.12\`"
  lacks "Python" "python3 python3-venv"
else
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "qft needs Python 3.11 or later, and $python is $version: install a newer one and name it, as in \`make test PYTHON=python3.12\`"
  # Debian and its kin leave ensurepip out of Python, and `venv` then fails after half its work.
  "$python" -c 'import ensurepip, venv' 2>/dev/null || lacks "Python's venv" "python$version-venv"
fi
if [ "$purpose" = tests ]; then
  PATH="$PATH:/usr/sbin:/usr/local/sbin"
  command -v sshd >/dev/null 2>&1 || lacks "OpenSSH's server" openssh-server
  command -v ssh-keygen >/dev/null 2>&1 && command -v ssh >/dev/null 2>&1 ||
    lacks "OpenSSH's client" openssh-client
  # Login shells that are no POSIX shells: tried where they are, installed where that is allowed.
  for shell in fish tcsh; do
    command -v "$shell" >/dev/null 2>&1 || extra="$extra $shell"
  done
fi
[ -n "$missing$extra" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
  as_root="sudo -n"
else
  [ -n "$missing" ] || exit 0
  command -v apt-get >/dev/null 2>&1 && stop "missing: $missing. Type: sudo apt-get update && sudo apt-get install $packages  and then the same command again"
fi
if ! command -v apt-get >/dev/null 2>&1; then
  [ -n "$missing" ] || exit 0
  stop "missing: $missing. Install it with this system's package manager (Debian calls it: $packages), then type the same command again"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT

install() {  # fails if apt does, with what it said in the log
  echo "installing with apt-get: $*"
  $as_root apt-get -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 &&
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 \
      install -y --no-install-recommends "$@" >>"$log" 2>&1
}

# shellcheck disable=SC2086  # words on purpose: they are package names
if install $packages $extra; then
  exit 0
elif [ -z "$missing" ] || { [ -n "$extra" ] && install $packages; }; then
  echo "going on without:$extra"
else
  tail -n 15 "$log" >&2
  stop "apt-get could not install $packages (its last lines are above): mend that, then type the same command again"
fi
