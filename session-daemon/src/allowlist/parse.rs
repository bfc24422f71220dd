//! From text to entries: `--allow` values and allow files.
//! It owns the grammar and the checks on a file's owner and mode; it never changes a list.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::{FileType, Mode, OFlags};

use crate::allowlist::{
    Action, Entry, LIST_HOSTS_MAX, LIST_PREFIXES_MAX, Note, Origin, canonical, host, is_any,
};

/// Longest allow file. A million entries with comments of 20 bytes are 64 MB.
pub const FILE_LEN_MAX: u64 = 128 << 20;

/// Longest name of entries in bytes, as for a label of a host name.
const NAME_LEN_MAX: usize = 63;

/// Longest piece of the operator's text that a message repeats.
const QUOTE_CHARS_MAX: usize = 60;

/// Whether an entry may allow every address of a family (`--allow-any`, `sessionctl --any`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Any {
    /// Such an entry is an error.
    Refused,
    /// The operator asked for it.
    Permitted,
}

/// What is wrong with one prefix, and how to write it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Nothing between two commas, or nothing at all.
    #[error("empty entry; write an address such as 198.18.0.1 or a prefix such as 198.18.0.0/24")]
    Empty,
    /// Neither an address nor a prefix.
    #[error(
        "`{0}` is neither an address nor a prefix; names are not resolved, write 198.18.0.1, 198.18.0.0/24 or 2001:db8::/64"
    )]
    NotAnAddress(String),
    /// The part behind the slash is not a length for this family.
    #[error("`{text}` has a bad prefix length; write a number from 0 to {max} behind the slash")]
    PrefixLength {
        /// What was written.
        text: String,
        /// Longest prefix of the family.
        max: u8,
    },
    /// Bits below the prefix length are set.
    #[error("`{text}` has host bits set; write {network} for the network or {host} for the host")]
    HostBits {
        /// What was written.
        text: String,
        /// The network that holds the address.
        network: IpNet,
        /// The address alone.
        host: IpAddr,
    },
    /// An address with a zone.
    #[error("`{0}` has a zone; write the address without `%` and what follows it")]
    Zone(String),
    /// Every address of a family would be let in.
    #[error(
        "`allow {0}` lets every address in; name the networks, or pass --allow-any (sessionctl: --any) if that is meant"
    )]
    AllowAny(IpNet),
    /// A name that could be taken for something else.
    #[error(
        "`{0}` is no name; write 1 to 63 letters, digits, dots, dashes or underscores, a letter first"
    )]
    Name(String),
    /// More entries than the kernel's tables hold.
    #[error(
        "it is one more than the {max} {kind} that a list can have; merge neighbouring entries into prefixes"
    )]
    TooMany {
        /// The family and kind, such as `IPv4 hosts`.
        kind: &'static str,
        /// The most.
        max: usize,
    },
    /// The list says two things about one prefix.
    #[error("{prefix} is {was} on line {line} and {is} here; keep one of the two lines")]
    Contradiction {
        /// The prefix.
        prefix: IpNet,
        /// The earlier line, counted from 1.
        line: usize,
        /// `allowed` or `denied`, there.
        was: &'static str,
        /// `allowed` or `denied`, here.
        is: &'static str,
    },
}

/// Why an allow file was refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A line that cannot be read.
    #[error("line {line}: {error}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        error: ParseError,
    },
    /// A line with more than an action, a prefix and a name.
    #[error(
        "line {line}: `{text}` follows the entry; put one entry on a line, its name as name=NAME behind it and comments behind #"
    )]
    Trailing {
        /// Counted from 1.
        line: usize,
        /// What follows the entry.
        text: String,
    },
    /// The file cannot be opened or read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A symbolic link.
    #[error("{0} is a symbolic link; name the file it points to")]
    Symlink(PathBuf),
    /// A directory, FIFO, socket or device.
    #[error("{path} is a {kind}; name a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Somebody else could change the list.
    #[error("{path} can be written by its group or by others; run: chmod go-w {path}")]
    Writable {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else owns the list.
    #[error("{path} belongs to uid {owner}; run: chown {expected} {path}")]
    Owner {
        /// The path.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who should: the user that reads it.
        expected: u32,
    },
    /// More text than a list can be.
    #[error("{path} is longer than {FILE_LEN_MAX} bytes; merge neighbouring entries into prefixes")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Bytes that are no text.
    #[error("{path}: line {line} is not UTF-8 text; name a text file with one entry a line")]
    NotText {
        /// The path.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// One prefix or address. Host bits are an error that names the network that was meant.
pub fn parse_prefix(text: &str) -> Result<IpNet, ParseError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ParseError::Empty);
    }
    if text.contains('%') {
        return Err(ParseError::Zone(quote(text)));
    }
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| ParseError::NotAnAddress(quote(text)))?;
    let Some(length) = length else { return Ok(host(address)) };
    let max = if address.is_ipv4() { 32 } else { 128 };
    let length = length
        .parse::<u8>()
        .ok()
        .filter(|value| *value <= max && length.bytes().all(|byte| byte.is_ascii_digit()))
        .ok_or_else(|| ParseError::PrefixLength { text: quote(text), max })?;
    let net = IpNet::new(address, length).expect("the length is checked just above");
    if net.trunc() != net {
        return Err(ParseError::HostBits {
            text: quote(text),
            network: net.trunc(),
            host: address,
        });
    }
    Ok(canonical(net))
}

/// Comma-separated prefixes, as `--allow 198.18.0.0/24,2001:db8::1` has them.
pub fn parse_prefixes(text: &str) -> Result<Vec<IpNet>, ParseError> {
    text.split(',').map(parse_prefix).collect()
}

/// Refuses to allow every address of a family unless the operator asked for it.
pub fn check_any(prefix: IpNet, action: Action, any: Any) -> Result<(), ParseError> {
    if action == Action::Allow && any == Any::Refused && is_any(prefix) {
        return Err(ParseError::AllowAny(prefix));
    }
    Ok(())
}

/// Names stand where prefixes do, so none may look like one.
pub fn check_name(name: &str) -> Result<(), ParseError> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let fits = name.len() <= NAME_LEN_MAX
        && name.bytes().all(is_fit)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphabetic());
    if fits { Ok(()) } else { Err(ParseError::Name(quote(name))) }
}

/// Entries by family and kind, against what the kernel's tables hold.
#[derive(Default)]
struct Sizes([usize; 4]);

impl Sizes {
    fn count(&mut self, entry: &Entry) -> Result<(), ParseError> {
        let (idx, kind, max) = match (entry.prefix, entry.is_host()) {
            (IpNet::V4(_), true) => (0, "IPv4 hosts", LIST_HOSTS_MAX),
            (IpNet::V4(_), false) => (1, "IPv4 prefixes", LIST_PREFIXES_MAX),
            (IpNet::V6(_), true) => (2, "IPv6 hosts", LIST_HOSTS_MAX),
            (IpNet::V6(_), false) => (3, "IPv6 prefixes", LIST_PREFIXES_MAX),
        };
        self.0[idx] += 1;
        if self.0[idx] > max { Err(ParseError::TooMany { kind, max }) } else { Ok(()) }
    }
}

/// An allow file's text: one entry a line, `allow`, `deny`, or `drop`,
/// `reset` or `icmp` for a denial in that style before it (`allow` if none), `name=NAME` behind it, a comment behind `#`; both are kept with the entry. All or nothing.
pub fn parse_file(text: &str, any: Any) -> Result<Vec<Entry>, FileError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut sizes = Sizes::default();
    let mut seen: HashMap<IpNet, (usize, Action)> = HashMap::new();
    // Editors of other systems put a byte order mark before the first line.
    for (idx, text) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = idx + 1;
        let Some(entry) = parse_line(text, line)? else { continue };
        let fault = |error| FileError::Line { line, error };
        check_any(entry.prefix, entry.action, any).map_err(fault)?;
        match seen.insert(entry.prefix, (line, entry.action)) {
            None => {
                sizes.count(&entry).map_err(fault)?;
                entries.push(entry);
            }
            Some((_, action)) if action == entry.action => {}
            Some((line, action)) => {
                return Err(fault(ParseError::Contradiction {
                    prefix: entry.prefix,
                    line,
                    was: action.participle(),
                    is: entry.action.participle(),
                }));
            }
        }
    }
    Ok(entries)
}

/// Reads an allow file that only its reader or root could have written: no symbolic link in the
/// last place, a regular file, owned by root or the reader, not writable by group or others.
pub fn read_file(path: &Path, any: Any) -> Result<Vec<Entry>, FileError> {
    let mut file = open(path)?;
    let mut bytes = Vec::new();
    let io = |error| FileError::Io { path: path.to_owned(), error };
    file.by_ref().take(FILE_LEN_MAX + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(FileError::TooLong { path: path.to_owned() });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        FileError::NotText { path: path.to_owned(), line }
    })?;
    parse_file(&text, any)
}

fn open(path: &Path) -> Result<File, FileError> {
    // Non-blocking, so that a FIFO without a writer cannot hold up the start.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let io = |error: rustix::io::Errno| match error {
        rustix::io::Errno::LOOP => FileError::Symlink(path.to_owned()),
        error => FileError::Io { path: path.to_owned(), error: error.into() },
    };
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(io)?;
    let stat = rustix::fs::fstat(&file).map_err(io)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("directory"),
        FileType::Fifo => Some("FIFO"),
        FileType::Socket => Some("socket"),
        _ => Some("device"),
    };
    if let Some(kind) = kind {
        return Err(FileError::NotAFile { path: path.to_owned(), kind });
    }
    let expected = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != expected {
        let owner = stat.st_uid;
        return Err(FileError::Owner { path: path.to_owned(), owner, expected });
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(FileError::Writable { path: path.to_owned() });
    }
    Ok(File::from(file))
}

fn parse_line(text: &str, line: usize) -> Result<Option<Entry>, FileError> {
    let (entry, comment) = match text.split_once('#') {
        Some((entry, comment)) => (entry, Some(comment.trim())),
        None => (text, None),
    };
    let mut words = entry.split_whitespace();
    let Some(first) = words.next() else { return Ok(None) };
    let (action, prefix) = match first.to_ascii_lowercase().as_str() {
        "allow" => (Action::Allow, words.next().unwrap_or_default()),
        "deny" => (Action::Deny, words.next().unwrap_or_default()),
        "drop" => (Action::Drop, words.next().unwrap_or_default()),
        "reset" => (Action::Reset, words.next().unwrap_or_default()),
        "icmp" => (Action::Icmp, words.next().unwrap_or_default()),
        _ => (Action::Allow, first),
    };
    let prefix = parse_prefix(prefix).map_err(|error| FileError::Line { line, error })?;
    let mut name = None;
    for word in words {
        match word.strip_prefix("name=") {
            Some(text) if name.is_none() => {
                check_name(text).map_err(|error| FileError::Line { line, error })?;
                name = Some(text.to_owned());
            }
            _ => return Err(FileError::Trailing { line, text: quote(word) }),
        }
    }
    let comment = comment.filter(|comment| !comment.is_empty()).map(str::to_owned);
    Ok(Some(Entry::new(prefix, action, Origin::File).noted(Note { name, comment })))
}

/// The operator's text, short and free of control characters, for a message.
fn quote(text: &str) -> String {
    let clean: String = text.chars().take(QUOTE_CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_CHARS_MAX).is_some() { clean + "..." } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        parse_file(text, Any::Refused).unwrap_err().to_string()
    }

    #[test]
    fn prefixes_of_both_families() {
        let nets = parse_prefixes("198.18.0.0/24, 2001:db8::1,198.18.1.2").unwrap();
        let text: Vec<String> = nets.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["198.18.0.0/24", "2001:db8::1/128", "198.18.1.2/32"]);
    }

    #[test]
    fn mapped_prefixes_become_ipv4() {
        assert_eq!(parse_prefix("::ffff:198.18.0.1").unwrap().to_string(), "198.18.0.1/32");
        assert_eq!(parse_prefix("::ffff:198.18.0.0/112").unwrap().to_string(), "198.18.0.0/16");
    }

    #[test]
    fn host_bits_name_the_network_and_the_host() {
        let message = parse_prefix("198.18.0.77/24").unwrap_err().to_string();
        assert!(message.contains("198.18.0.0/24") && message.contains("198.18.0.77 for the host"));
    }

    #[test]
    fn each_fault_names_its_line_and_the_fix() {
        let table = [
            ("198.18.0.1\nweb1\n", "line 2: `web1` is neither", "names are not resolved"),
            ("\n\n198.18.0.1/24", "line 3:", "write 198.18.0.0/24"),
            ("198.18.0.0/33", "line 1:", "from 0 to 32"),
            ("198.18.0.0/+8", "line 1:", "from 0 to 32"),
            ("2001:db8::/129", "line 1:", "from 0 to 128"),
            ("allow", "line 1: empty entry", "198.18.0.1"),
            ("deny # nobody", "line 1: empty entry", "198.18.0.1"),
            ("198.18.0.1 198.18.0.2", "line 1: `198.18.0.2` follows", "one entry on a line"),
            ("fe80::1%eth0", "line 1:", "without `%`"),
            ("# all\n0.0.0.0/0", "line 2:", "--allow-any"),
            ("::/0", "line 1:", "--allow-any"),
            ("198.18.0.1\n\ndeny 198.18.0.1", "line 3: 198.18.0.1/32 is allowed on line 1", "keep"),
            ("198.18.0.1 name=", "line 1: `` is no name", "letters"),
            ("198.18.0.1 name=10.0.0.1", "line 1: `10.0.0.1` is no name", "a letter first"),
            ("198.18.0.1 name=a name=b", "line 1: `name=b` follows", "name=NAME"),
        ];
        for (text, place, fix) in table {
            let message = fault(text);
            assert!(message.starts_with(place), "{text:?}: {message}");
            assert!(message.contains(fix), "{text:?}: {message}");
        }
    }

    #[test]
    fn files_keep_actions_and_comments() {
        let text = "# web\n198.18.0.1 # web1\r\nDENY 2001:db8::/64\n\nallow 198.18.1.0/24#x # y\n";
        let entries = parse_file(text, Any::Refused).unwrap();
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[0].comment.as_deref(), Some("web1"));
        assert_eq!((entries[1].action, &entries[1].comment), (Action::Deny, &None));
        assert_eq!(entries[2].comment.as_deref(), Some("x # y"));
        assert!(entries.iter().all(|entry| entry.origin == Origin::File));
    }

    #[test]
    fn names_stand_behind_the_prefix() {
        let text = "198.18.0.1 name=web1 # the first\nallow 2001:db8::1 name=web1\n198.18.0.9\n";
        let entries = parse_file(text, Any::Refused).unwrap();
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_deref()).collect();
        assert_eq!(names, [Some("web1"), Some("web1"), None]);
        assert_eq!(entries[0].comment.as_deref(), Some("the first"));
    }

    #[test]
    fn the_first_entry_too_many_is_named_by_its_line() {
        let lines: String = (0..=LIST_PREFIXES_MAX)
            .map(|n| format!("10.{}.{}.{}/31\n", n >> 15, n >> 7 & 255, n << 1 & 255))
            .collect();
        let message = fault(&lines);
        let place = format!("line {}: it is one more than", LIST_PREFIXES_MAX + 1);
        assert!(message.starts_with(&place) && message.contains("IPv4 prefixes"), "{message}");
    }

    #[test]
    fn a_denial_may_name_its_style() {
        let text = "deny 198.18.0.1\ndrop 198.18.0.2\nRESET 198.18.0.0/16\nicmp 2001:db8::/32\n";
        let actions = parse_file(text, Any::Refused).unwrap().into_iter().map(|one| one.action);
        let styles = [Action::Deny, Action::Drop, Action::Reset, Action::Icmp];
        assert_eq!(actions.collect::<Vec<_>>(), styles);
        let message = fault("drop 198.18.0.1\nreset 198.18.0.1");
        assert!(message.contains("is dropped on line 1 and reset here"), "{message}");
    }

    #[test]
    fn any_may_be_denied_and_may_be_asked_for() {
        assert_eq!(parse_file("deny 0.0.0.0/0", Any::Refused).unwrap().len(), 1);
        assert_eq!(parse_file("::/0\n0.0.0.0/0", Any::Permitted).unwrap().len(), 2);
        for every in ["0.0.0.0/0", "::/0"] {
            assert!(fault(every).contains("lets every address in"), "{every}");
        }
        assert_eq!(parse_file("128.0.0.0/1\n10.0.0.0/8\nfc00::/7", Any::Refused).unwrap().len(), 3);
    }

    #[test]
    fn messages_repeat_no_control_characters() {
        let message = fault(&format!("\x1b[31m{}", "x".repeat(1000)));
        assert!(message.chars().all(|char| !char.is_control()) && message.len() < 300, "{message}");
    }

    mod on_disk {
        use std::os::unix::fs::{PermissionsExt, symlink};

        use super::*;

        fn message(path: &Path) -> String {
            read_file(path, Any::Refused).unwrap_err().to_string()
        }

        #[test]
        fn only_a_private_regular_file_is_read() {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("allow");
            std::fs::write(&file, "198.18.0.1 # web1\n").unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
            assert_eq!(read_file(&file, Any::Refused).unwrap().len(), 1);

            for mode in [0o664, 0o646] {
                std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
                assert!(message(&file).contains("run: chmod go-w"));
            }
            let link = dir.path().join("link");
            symlink(&file, &link).unwrap();
            assert!(message(&link).contains("symbolic link"));
            assert!(message(dir.path()).contains("is a directory"));
            assert!(message(&dir.path().join("absent")).contains("No such file"));

            let fifo = dir.path().join("fifo");
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &fifo,
                FileType::Fifo,
                Mode::from_raw_mode(0o600),
                0,
            )
            .unwrap();
            assert!(message(&fifo).contains("is a FIFO"));
        }

        #[test]
        fn a_foreign_owner_is_refused() {
            if !rustix::process::geteuid().is_root() {
                eprintln!("skipped: giving a file away needs root");
                return;
            }
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("allow");
            std::fs::write(&file, "198.18.0.1\n").unwrap();
            std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
            assert!(message(&file).contains("belongs to uid 65534; run: chown 0 "));
        }

        #[test]
        fn binary_bytes_are_named_by_line() {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("allow");
            std::fs::write(&file, b"198.18.0.1\n\xff\xfe\n").unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
            assert!(message(&file).contains("line 2 is not UTF-8"));
        }
    }
}
