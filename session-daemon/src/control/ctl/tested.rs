//! The answer of `sessionctl test` in words.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde_json::Value;

/// A line a port, or one that says why there is none.
pub(super) fn render(answer: &Value) -> String {
    let address = answer["address"].as_str().unwrap_or_default();
    if answer["is_own"] == true {
        return format!(
            "{address} is this host itself: served over lo, dropped as forged_source if it comes \
             from outside\n"
        );
    }
    let entry = entry(&answer["entry"]);
    let Some(packets) = answer["packets"].as_array() else {
        return format!("{address}: {}\n", without_guard(answer, &entry));
    };
    let mut text = String::new();
    for packet in packets {
        let protocol = packet["protocol"].as_str().unwrap_or_default();
        let _ =
            writeln!(text, "{address} to {protocol} {}: {}", packet["port"], fate(packet, &entry));
    }
    text
}

/// What becomes of a packet.
fn fate(packet: &Value, entry: &str) -> String {
    let reason = packet["reason"].as_str().unwrap_or_default();
    let told = match packet["answer"].as_str() {
        Some("reset") => "told by a TCP reset",
        Some(_) => "told by ICMP",
        None => "told nothing",
    };
    match (packet["passes"] == true, reason) {
        (true, "not_guarded") => "passes: not guarded (not_guarded)".to_owned(),
        (true, "allowed") => format!("let in by {entry} (allowed)"),
        (true, reason) => {
            format!("let in, because audit is on; else dropped{} ({reason})", by(entry, reason))
        }
        (false, reason) => format!("dropped{}, {told} ({reason})", by(entry, reason)),
    }
}

/// Which entry drops, where one does.
fn by(entry: &str, reason: &str) -> String {
    match reason {
        "deny_entry" | "deadline" => format!(" by {entry}"),
        "not_listed" => ", since no entry names it".to_owned(),
        _ => String::new(),
    }
}

/// Where no program judges packets: the check at accept, or nobody.
fn without_guard(answer: &Value, entry: &str) -> String {
    let reason = answer["reason"].as_str().unwrap_or_default();
    let by = by(entry, reason);
    match (answer["enforced"].as_str(), answer["allowed"] == true) {
        (Some("off"), _) => "served: --guard=off, whatever the list says".to_owned(),
        (Some("loopback"), _) => "cannot come: only the loopback is served".to_owned(),
        (_, true) => format!("let in by {entry} (allowed)"),
        (Some("audit"), false) => {
            format!("let in, because audit is on; else refused at accept{by} ({reason})")
        }
        (_, false) => format!("refused at accept{by} ({reason})"),
    }
}

/// The entry that decides, as `list` has it.
fn entry(entry: &Value) -> String {
    let word = |name: &str| entry[name].as_str().unwrap_or_default();
    let mut text = format!("{} {}", word("action"), word("prefix"));
    if !word("name").is_empty() {
        let _ = write!(text, " {}", word("name"));
    }
    if !word("comment").is_empty() {
        let _ = write!(text, " # {}", word("comment"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::render;

    #[test]
    fn each_fate_has_its_words() {
        let packet = |passes: bool, reason: &str, answer: Option<&str>| json!({"protocol": "tcp", "port": 11211, "passes": passes, "reason": reason, "answer": answer});
        let answer = |packets: serde_json::Value| {
            json!({
                "address": "198.18.0.7", "is_own": false, "enforced": "xdp", "packets": packets,
                "entry": {"action": "deny", "prefix": "198.18.0.7/32", "name": "web7"},
                "reason": "deny_entry", "allowed": false,
            })
        };
        for (packet, words) in [
            (packet(true, "not_guarded", None), "passes: not guarded (not_guarded)"),
            (packet(true, "allowed", None), "let in by deny 198.18.0.7/32 web7 (allowed)"),
            (
                packet(false, "not_listed", None),
                "dropped, since no entry names it, told nothing (not_listed)",
            ),
            (
                packet(false, "deny_entry", Some("reset")),
                "dropped by deny 198.18.0.7/32 web7, told by a TCP reset (deny_entry)",
            ),
            (
                packet(true, "not_listed", None),
                "let in, because audit is on; else dropped, since no entry names it (not_listed)",
            ),
        ] {
            let text = render(&answer(json!([packet])));
            assert_eq!(text, format!("198.18.0.7 to tcp 11211: {words}\n"));
        }
        let mut own = answer(json!(null));
        assert_eq!(
            render(&own),
            "198.18.0.7: refused at accept by deny 198.18.0.7/32 web7 (deny_entry)\n"
        );
        own["is_own"] = true.into();
        assert!(render(&own).contains("this host itself"));
    }
}
