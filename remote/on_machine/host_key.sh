# Replaces the SSH host key of this machine, in steps that may be cut and repeated.
#   host_key.sh KEY make EXPECTED   print the public line of the next key, made unless it is there
#   host_key.sh KEY use EXPECTED    put the next key in the place of KEY
# EXPECTED is the base64 of the public key that a caller who was killed had been given, or empty.
set -eu
umask 077
key=$1 expected=$3
next=$key.next

public_line() { ssh-keygen -y -P '' -f "$1"; }
is_expected() { [ -n "$expected" ] && [ "$(public_line "$1" | cut -d ' ' -f 2)" = "$expected" ]; }

# Newer servers hand each connection the keys that they read when they began.
reload() {
    pid=$$
    while [ "${pid:-0}" -gt 1 ]; do
        case "$(tr '\0' ' ' <"/proc/$pid/cmdline")" in
        sshd:*\[listener\]*)
            kill -HUP "$pid"
            return
            ;;
        esac
        pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status") || pid=0
    done
    case $key in
    /etc/ssh/*) systemctl reload ssh.service || systemctl reload sshd.service || true ;;
    esac
}

case $2 in
make)
    if is_expected "$key"; then # the change was cut after the key had been replaced
        public_line "$key"
        exit
    fi
    if ! public_line "$next" >/dev/null 2>&1; then
        rm -f "$next" "$next.new" "$next.new.pub"
        ssh-keygen -q -t ed25519 -N '' -C qft -f "$next.new"
        rm -f "$next.new.pub"
        sync
        mv -f "$next.new" "$next"
    fi
    public_line "$next"
    ;;
use)
    if ! is_expected "$key"; then
        is_expected "$next" || { echo "$next is not the key that was made" >&2 && exit 3; }
        rm -f "$key.pub" # a server may refuse a pair that does not match
        mv -f "$next" "$key"
    fi
    public_line "$key" >"$key.pub.next"
    chmod 644 "$key.pub.next"
    mv -f "$key.pub.next" "$key.pub"
    sync
    reload
    ;;
esac
