# Shell functions for steps that use the system's packages; put before a step's command, as root.
# POSIX only. What the system's tools make is for everybody to read.
umask 022

# apt-get that asks nothing and waits for the lock on installing.
qft_apt() {
  LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -y "$@"
}

# Fetch the lists. Their lock has no time-out, so it is asked for again, for ten minutes at most. A
# list that cannot be fetched is no failure yet: installing reports what it lacks.
qft_update() {
  n=0
  while qft_apt update 2>&1 | tee -a /dev/stderr | grep 'not get lock' > /dev/null && [ $n -lt 60 ]; do
    n=$((n + 1))
    sleep 10
  done
}

# Finish what a cut left half done. dpkg does not wait for the lock, so apt-get does before.
qft_repair() {
  qft_apt check > /dev/null 2>&1
  LC_ALL=C DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure -a
}

# Run apt-get, and copy what it prints to the file $output.
qft_apt_logged() {
  { qft_apt "$@" 2>&1; echo $? > "$output.code"; } | tee "$output"
  return "$(cat "$output.code")"
}

# Install packages; once more after what a cut or an old list left is put right. Whether there is
# such a thing is found in what apt-get prints.
qft_install() {
  output=$(mktemp) || return
  qft_apt_logged install "$@"
  code=$?
  if [ $code != 0 ]; then
    again=
    if grep -qE 'dpkg was interrupted|not fully installed' "$output"; then
      again=yes
      qft_repair
    fi
    if grep -qE -e '--fix-broken install|unmet dependencies' "$output"; then
      again=yes
      qft_apt --fix-broken install
    fi
    if grep -qE '404 +[A-Z]|Hash Sum mismatch|unexpected size|to locate package' "$output"; then
      again=yes
      qft_update
    fi
    if [ "$again" ]; then
      qft_apt_logged install "$@"
      code=$?
    fi
  fi
  rm -f "$output" "$output.code"
  return $code
}
