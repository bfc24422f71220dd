//! The texts of `-h`, `-V` and `-i`.
#![forbid(unsafe_code)]

use crate::cli::MEMCACHED_VERSION;

/// The text of `-h`: only what exists.
#[must_use]
pub fn usage() -> String {
    format!("memcached {MEMCACHED_VERSION}\n{FLAGS}")
}

/// The text of `-V`: memcached's version that is answered for, then our own.
#[must_use]
pub fn version() -> String {
    format!("memcached {MEMCACHED_VERSION}\nsessiond {}\n", env!("CARGO_PKG_VERSION"))
}

/// The text of `-i`.
#[must_use]
pub fn license() -> String {
    format!(
        "memcached {MEMCACHED_VERSION}\nsessiond {}, licensed under {}.\n\
         The program that it loads into the kernel is licensed under GPL-2.0 as well.\n\
         Not made from memcached's source; memcached's name is here because its flags, its\n\
         protocol and its texts are answered for.\n",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_LICENSE"),
    )
}

const FLAGS: &str = "\
-p, --port=<num>          TCP port to listen on (default: 11211, 0 is off, -1 is any)
-U, --udp-port=<num>      UDP port to listen on (default: 0, off, -1 is any); without -p also
                          the TCP port; reads only, see --udp-writes
-s, --unix-socket=<file>  UNIX socket to listen on (disables network support)
-a, --unix-mask=<mask>    access mask for UNIX socket, in octal (default: 700)
-A, --enable-shutdown     enable ascii \"shutdown\" command
-l, --listen=<addr>       address to listen on, host, host:port or [v6]:port; several
                          joined by commas or by repeating (default: all addresses);
                          with -Z notls:, btls: or mtls: before it: no TLS, TLS, or TLS
                          with a certificate of the client
-d, --daemon              run as a daemon; returns once the port is served
-r, --enable-coredumps    maximize core file limit
-u, --user=<user>         assume identity of <username> (only when run as root)
-m, --memory-limit=<num>  item memory in megabytes (default: 64)
-e, --memory-file=<file>  keep the items in <file>, on tmpfs or hugetlbfs: a restart,
                          kill -9 included, goes on with them
-M, --disable-evictions   return error on memory exhausted instead of evicting
-c, --conn-limit=<num>    max simultaneous connections (default: 1024)
-k, --lock-memory         lock down all paged memory
-v, --verbose             verbose (print what is done beside the requests)
-vv                       very verbose
-vvv                      extremely verbose (internal state)
-h, --help                print this help and exit
-i, --license             print licenses and exit
-V, --version             print version and exit
-P, --pidfile=<file>      save the parent's PID in <file>
-f, --slab-growth-factor=<num> chunk size growth factor (default: 1.25)
-n, --slab-min-size=<bytes> min space used for key+value+flags (default: 48)
-t, --threads=<num>       number of threads to use (default: 4)
-R, --max-reqs-per-event  maximum number of requests per event, limits the
                          requests processed per connection to prevent
                          starvation (default: 20)
-C, --disable-cas         disable use of CAS
-b, --listen-backlog=<num> set the backlog queue limit (default: 1024)
-B, --protocol=<name>     protocol - one of ascii, binary, or auto (default: auto-negotiate)
-I, --max-item-size=<num> adjusts max item size
                          (default: 1m, min: 1k, max: 1024m)
-F, --disable-flush-all   disable flush_all command
-S, --enable-sasl         turn on SASL authentication (PLAIN, binary protocol only);
                          the passwords are in --sasl-pwdb
-Y, --auth-file=<file>    turn on authentication in the ASCII protocol, by the
                          user:password lines of the file; reread on SIGHUP
-X, --disable-dumping     disable stats cachedump and lru_crawler metadump
-W, --disable-watch       disable watch commands (live logging)
-D <char>                 what ends the prefix of a key in stats detail (default: \":\");
                          turns stats detail on
-L, --enable-largepages   accepted; the kernel's transparent huge pages apply
-N, --napi-ids=<num>      accepted; connections go to the least loaded worker
-Z, --enable-ssl          enable TLS/SSL
-o, --extended            comma separated list of extended options
   - maxconns_fast:       immediately close new connections after limit
                          (default: enabled); no_maxconns_fast waits instead
   - idle_timeout:        timeout for idle connections (default: 0, no timeout)
   - ssl_chain_cert:      certificate chain file in PEM format
   - ssl_key:             private key of the chain's first certificate
   - ssl_verify_mode:     client certificates: 0 (none, default), 1 (request),
                          2 (require), 3 (once, as 1)
   - ssl_keyformat:       private key format, 1 (PEM, default) or 2 (ASN1)
   - ssl_ca_cert:         PEM file of the CAs that vouch for clients
   - ssl_wbuf_size:       kilobytes of sealed answers a connection (default: 16)
   - ssl_session_cache:   let clients take sessions up again (default: off)
   - ssl_min_version:     2 (TLS 1.2, default) or 3 (TLS 1.3)
   - track_sizes:         enable stats sizes
   - watcher_logbuf_size: kilobytes that a watcher may be behind (default: 256)
   - sock_cookie_id:      mark of the listening sockets, for packet filters
   - no_slab_reassign, no_lru_crawler, no_lru_maintainer: refuse the commands of these names
   - no_modern:           the three above and no_maxconns_fast
   - relaxed_privileges:  debug command debugtime, which moves the store's clock
   accepted, and changing nothing here (each says why in the log): modern, hashpower,
   no_hashexpand, hash_algorithm, slab_reassign, slab_automove, no_slab_automove,
   slab_automove_ratio, slab_automove_window, slab_automove_freeratio, slab_sizes,
   slab_chunk_max, no_chunked_items, tail_repair_time, lru_crawler, lru_crawler_sleep,
   lru_crawler_tocrawl, lru_maintainer, hot_lru_pct, warm_lru_pct, hot_max_factor,
   warm_max_factor, temporary_ttl, worker_logbuf_size, read_buf_mem_limit,
   resp_obj_mem_limit, inline_ascii_resp, no_inline_ascii_resp, drop_privileges,
   no_drop_privileges
    --config=<file>       read flags from a file such as memcached.conf or memcached's
                          sysconfig file, in the place of this flag; repeatable
    --sasl-pwdb=<file>    user:password lines for -S, reread on SIGHUP (default: the
                          file that MEMCACHED_SASL_PWDB names)
    --read-timeout=<s>    close who leaves a request half sent so long (default: 60)
    --write-timeout=<s>   close who reads no byte of its answers so long (default: 60)
    --buffer-limit=<num>  megabytes of half-sent requests and unread answers that all
                          connections together may keep (default: 128)
    --udp-writes          serve what changes items by datagram too: whoever can
                          forge an allowed address can then change items
    --protect=<prefix>[=<share>] evict items whose keys begin so only after all others,
                          while they hold no more than <share> percent of -m
                          (default: 50); repeatable, the shares are one together
    --kernel-plane[=persist] let the kernel answer gets by datagram from the store itself
                          (needs -U, the guard, Linux 5.18); the store is in kernel
                          memory then, and kept over restarts as with -e; persist: it
                          answers on for up to 5 minutes while sessiond is started again
    --io=<engine>         tokio: epoll; uring: io_uring, which needs Linux 6.1; auto:
                          io_uring while many connections speak (default: auto)

Who may reach the port (nobody but this host, until told otherwise):
    --allow=<prefix>[,..] allow these sources, repeatable
    --allow-file=<file>   allow and deny entries, one a line, repeatable
    --allow-any           accept 0.0.0.0/0 or ::/0 as an allowed prefix
    --interface=<name>[,..] guard these interfaces (default: all but lo)
    --guard=<kind>        xdp: drop in the driver (default); audit: count and let in;
                          user: refuse at accept only; off: serve everybody
    --guard-mode=<mode>   auto, native, tcx or generic (default: auto)
    --refuse=<style>      drop, reset or icmp: what a refused source is told
                          (default: drop)
    --admin=<where>       clients: administration commands are taken from every client
                          (default); control: only from sessionctl
    --control=<path>      socket of sessionctl (default: /run/sessiond/control.sock,
                          control-<port>.sock on another port than 11211)
    --state=<path>        what sessionctl changed, kept over restarts (default:
                          /var/lib/sessiond/overlay.json, overlay-<port>.json)
    --bpffs=<path>        where the guard is pinned (default: /sys/fs/bpf)
    --metrics-listen=<place> figures for Prometheus: a port of the loopback,
                          <addr>:<port> or unix:<path>
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::rows;
    use crate::cli::{Flag, UNSERVED};

    #[test]
    fn help_lists_every_served_flag_and_no_other() {
        let text = usage();
        for row in rows() {
            let refused = matches!(row.flag, Flag::Unserved(_));
            if !row.long.is_empty() {
                assert_eq!(text.contains(&format!("--{}", row.long)), !refused, "{}", row.long);
            }
        }
        for flag in UNSERVED {
            assert!(!text.contains(&format!("-{},", flag.short)), "{}", flag.short);
        }
        assert_eq!(text.lines().next(), Some("memcached 1.6.45"));
        assert_eq!(version().lines().next(), Some("memcached 1.6.45"));
    }
}
