//! Answers for people. Pure: JSON in, text out.
#![forbid(unsafe_code)]

use std::fmt::Write;

use serde_json::Value;

use crate::allowlist::Diff;
use crate::control::changes::diff_lines;

/// Most entries that `status` shows with their packets.
const BUSIEST_MAX: usize = 10;

/// The answer to a change: `-` what went, `+` what came.
pub(super) fn changed(answer: &Value) -> String {
    let lines = diff(&answer["diff"]);
    let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    if lines.is_empty() {
        text.push_str("nothing to change\n");
    }
    let counts = ["added", "removed", "changed"].map(|part| answer["counts"][part].as_u64());
    let all: u64 = counts.into_iter().flatten().sum();
    let shown = ["added", "removed", "changed"]
        .map(|part| answer["diff"][part].as_array().map_or(0, |entries| entries.len() as u64));
    let hidden = all.saturating_sub(shown.iter().sum());
    if hidden > 0 {
        let _ = writeln!(text, "and {hidden} more entries");
    }
    for pair in answer["redundant"].as_array().into_iter().flatten() {
        let [entry, larger] = [0, 1].map(|idx| pair[idx].as_str().unwrap_or_default());
        let _ = writeln!(text, "{entry} could go: {larger} says the same");
    }
    let reset = answer["reset"].as_u64().unwrap_or(0);
    if reset > 0 {
        let _ = writeln!(text, "{reset} {} reset", plural(reset, "connection"));
    }
    if let Some(seconds) = answer["confirm_s"].as_u64() {
        let _ = writeln!(
            text,
            "in force, and taken back in {} unless you run: sessionctl confirm",
            span(seconds)
        );
    }
    if let Some(warning) = answer["warning"].as_str() {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}

/// What `audit` did.
pub(super) fn audited(answer: &Value) -> String {
    let reset = answer["reset"].as_u64().unwrap_or(0);
    match answer["audit"].as_bool() {
        Some(true) => "AUDIT is on: everybody is let in and counted, until `sessionctl audit off` \
                       or a restart\n"
            .to_owned(),
        _ => format!(
            "audit is off: the list is enforced; {reset} {} reset\n",
            plural(reset, "connection")
        ),
    }
}

/// The list as a file that `sync` reads; a deadline goes into the comment.
pub(super) fn exported(entries: &[Value]) -> String {
    let mut text = String::new();
    for entry in entries {
        let word = |name: &str| entry[name].as_str().unwrap_or_default();
        let _ = write!(text, "{} {}", word("action"), word("prefix"));
        if !word("name").is_empty() {
            let _ = write!(text, " name={}", word("name"));
        }
        let left = entry["left_s"].as_u64().map(|left| format!("{} left", span(left)));
        let comment = [left.as_deref().unwrap_or_default(), word("comment")];
        let comment = comment.join(" ");
        if !comment.trim().is_empty() {
            let _ = write!(text, " # {}", comment.trim());
        }
        text.push('\n');
    }
    text
}

fn diff(value: &Value) -> Vec<String> {
    let diff = serde_json::from_value::<Diff>(value.clone());
    diff.map(|diff| diff_lines(&diff).collect()).unwrap_or_default()
}

/// What a memory file holds.
pub(super) fn checked(answer: &Value) -> String {
    format!(
        "{} items of {} bytes, {} that have ended, {} replaced, {} lost; every invariant holds\n",
        answer["items"], answer["bytes"], answer["ended"], answer["replaced"], answer["lost"],
    )
}

/// What a file of memcached's service means here.
pub(super) fn config(answer: &Value) -> String {
    let mut text = String::from("understood:\n");
    for flag in answer["understood"].as_array().into_iter().flatten() {
        let word = |name: &str| flag[name].as_str().unwrap_or_default();
        let line = format!("  line {:<4} {} {}", flag["line"], word("flag"), word("value"));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let remarks = words(&answer["remarks"]);
    if !remarks.is_empty() {
        text.push_str("not taken over:\n");
    }
    for remark in remarks {
        let _ = writeln!(text, "  {remark}");
    }
    text.push_str("either of these does the same:\n");
    for command in words(&answer["commands"]) {
        let _ = writeln!(text, "  {command}");
    }
    text
}

/// The list: prefix, action, origin, what is left of it, comment.
pub(super) fn list(head: &Value, entries: &[Value]) -> String {
    let mut text = String::new();
    for entry in entries {
        let word = |name: &str| entry[name].as_str().unwrap_or_default();
        let _ = write!(text, "{:5} {:24} {:7}", word("action"), word("prefix"), word("origin"));
        if !word("name").is_empty() {
            let _ = write!(text, " {}", word("name"));
        }
        if let Some(left) = entry["left_s"].as_u64() {
            let _ = write!(text, " {} left", span(left));
        }
        if !word("comment").is_empty() {
            let _ = write!(text, " # {}", word("comment"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for prefix in words(&head["taken_out"]) {
        let _ = writeln!(text, "-     {prefix:24} taken out of the configuration by sessionctl");
    }
    if text.is_empty() {
        text.push_str("the list is empty: every source but this host is refused\n");
    }
    if let Some(line) = pending(&head["pending"]) {
        let _ = writeln!(text, "{line}");
    }
    match head["enforced"].as_str() {
        Some("off") => {
            text.push_str("warning: --guard=off: everybody is served, whatever the list says\n");
        }
        Some("audit") => text.push_str("warning: AUDIT is on: everybody is let in and counted\n"),
        _ => {}
    }
    text
}

/// A change that waits to be confirmed.
fn pending(pending: &Value) -> Option<String> {
    let command = pending["command"].as_str()?;
    let left = span(pending["left_s"].as_u64().unwrap_or(0));
    Some(format!("a change ({command}) is taken back in {left} unless you run: sessionctl confirm"))
}

/// The state on about a screen.
pub(super) fn status(answer: &Value) -> String {
    let mut text = String::new();
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let _ = writeln!(
        text,
        "sessiond {} (memcached {}), pid {} and {}, up {}",
        word(&answer["version"]),
        word(&answer["memcached_version"]),
        number(&answer["pid"]),
        number(&answer["child_pid"]),
        span(number(&answer["uptime_s"])),
    );
    let mut serving = words(&answer["serving"]["tcp"]);
    serving.extend(answer["serving"]["unix"].as_str().map(str::to_owned));
    let _ = writeln!(text, "serving      {}", serving.join(", "));
    let _ = writeln!(text, "guard        {}", guard_line(answer));
    guard(&mut text, &answer["guard"]);
    let list = &answer["list"];
    let _ = writeln!(
        text,
        "list         {} entries: {} allow, {} deny; {} taken out of the configuration",
        number(&list["entries"]),
        number(&list["allow"]),
        number(&list["deny"]),
        number(&list["taken_out"]),
    );
    if let Some(line) = pending(&list["pending"]) {
        let _ = writeln!(text, "  {line}");
    }
    busiest(&mut text, &answer["guard"]["counts"]);
    let statistics = &answer["statistics"];
    let figure = |name: &str| match &statistics[name] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let _ = writeln!(
        text,
        "items        {} in {} of {} bytes, {} evicted",
        figure("curr_items"),
        figure("bytes"),
        figure("limit_maxbytes"),
        figure("evictions"),
    );
    if !statistics["protected_items"].is_null() {
        let _ = writeln!(
            text,
            "protected    {} items in {} of {} bytes, {} lost",
            figure("protected_items"),
            figure("protected_bytes"),
            figure("protected_limit_bytes"),
            figure("protected_lost"),
        );
    }
    if let Some(line) = kernel_plane(statistics) {
        let _ = writeln!(text, "{line}");
    }
    if let Some(start) = statistics["memory_file_start"].as_str() {
        let us = figure("memory_file_start_us").parse::<f64>().unwrap_or(0.0);
        let _ = match start {
            "kept" if figure("memory_file_in_place") == "1" => writeln!(
                text,
                "memory file  {} items kept in place in {:.3} s, {} % checked, {} lost",
                figure("memory_file_items"),
                us / 1e6,
                figure("memory_file_checked_percent"),
                figure("memory_file_lost"),
            ),
            "kept" => writeln!(
                text,
                "memory file  {} items kept in {:.3} s, {} had ended, {} lost",
                figure("memory_file_items"),
                us / 1e6,
                figure("memory_file_ended"),
                figure("memory_file_lost"),
            ),
            cold => writeln!(text, "memory file  started empty: {cold}"),
        };
    }
    let _ = writeln!(
        text,
        "connections  {} open, {} in all",
        figure("curr_connections"),
        figure("total_connections"),
    );
    text
}

/// What the kernel has answered, and what it left to the daemon and why.
fn kernel_plane(statistics: &Value) -> Option<String> {
    let count = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok());
    let answered = count(&statistics["kernel_plane_hits"])?
        + count(&statistics["kernel_plane_misses"]).unwrap_or(0);
    let passed = statistics.as_object().into_iter().flatten().filter_map(|(name, value)| {
        let reason = name.strip_prefix("kernel_plane_passed_")?;
        Some((count(value).filter(|passed| *passed > 0)?, reason.replace('_', " ")))
    });
    let mut passed: Vec<_> = passed.collect();
    passed.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let all: u64 = passed.iter().map(|(count, _)| count).sum();
    let reasons: Vec<_> = passed.iter().map(|(count, why)| format!("{why} {count}")).collect();
    let reasons = if all > 0 { format!(": {}", reasons.join(", ")) } else { String::new() };
    Some(format!("kernel plane {answered} datagrams answered, {all} left to sessiond{reasons}"))
}

fn guard_line(answer: &Value) -> &'static str {
    match answer["enforced"].as_str() {
        Some("xdp") if answer["guard"]["complete"] == true => {
            "attached to every interface that it should be on"
        }
        Some("xdp") => "NOT attached to every interface that it should be on",
        Some("audit") => {
            "AUDIT: everybody is let in and counted; `sessionctl audit off` enforces the list"
        }
        Some("user") => "none; strangers are refused at accept (--guard=user)",
        Some("loopback") => "none needed: nobody but this host reaches the addresses",
        _ => "OFF: everybody is served (--guard=off)",
    }
}

/// The entries that decided most packets.
fn busiest(text: &mut String, counts: &Value) {
    let packets = |count: &Value| count["packets"].as_u64().unwrap_or(0);
    let mut counts: Vec<&Value> =
        counts.as_array().into_iter().flatten().filter(|count| packets(count) > 0).collect();
    counts.sort_by_key(|count| std::cmp::Reverse(packets(count)));
    for count in counts.into_iter().take(BUSIEST_MAX) {
        let word = |name: &str| count[name].as_str().unwrap_or_default();
        let name =
            if word("name").is_empty() { String::new() } else { format!(" {}", word("name")) };
        let fate = if word("action") == "deny" { "denied" } else { "allowed" };
        let _ =
            writeln!(text, "  {fate:8} {:>12} packets: {}{name}", packets(count), word("prefix"));
    }
}

/// One line an interface, one a reason with packets, one a warning.
fn guard(text: &mut String, guard: &Value) {
    let items = |name: &str| guard[name].as_array().cloned().unwrap_or_default();
    for interface in items("interfaces") {
        let how = interface["mode"].as_str().or(interface["state"].as_str()).unwrap_or("unknown");
        let pinned = if interface["pinned"] == true { ", pinned" } else { "" };
        let name = interface["name"].as_str().unwrap_or_default();
        let _ = write!(text, "  {name:16} {how}{pinned}");
        if let Some(warning) = interface["warning"].as_str() {
            let _ = write!(text, "; {warning}");
        }
        text.push('\n');
    }
    for count in items("reasons") {
        let packets = count["packets"].as_u64().unwrap_or(0);
        if packets > 0 {
            let fate = if count["dropped"] == true { "dropped" } else { "passed" };
            let reason = count["reason"].as_str().unwrap_or_default();
            let _ = writeln!(text, "  {fate:8} {packets:>12} packets: {reason}");
        }
    }
    if let Some(style @ ("reset" | "icmp")) = guard["refuse"].as_str() {
        let _ = writeln!(text, "  refused sources are answered: {style}");
    }
    for count in items("answers") {
        let packets = count["packets"].as_u64().unwrap_or(0);
        if packets > 0 {
            let what = match count["answer"].as_str().unwrap_or_default() {
                "reset" => "by a TCP reset",
                "icmp" => "by ICMP",
                "cpu_limit" => "not: enough answers from this CPU",
                "source_limit" => "not: enough answers to this source",
                _ => "not: of a kind that is never answered",
            };
            let _ = writeln!(text, "  answered {packets:>12} packets: {what}");
        }
    }
    if let Some(source) = items("top_sources").first() {
        let address = source["source"].as_str().unwrap_or_default();
        let _ = writeln!(text, "  refused most lately: {address} (sessionctl top-sources)");
    }
    for warning in words(&guard["warnings"]) {
        let _ = writeln!(text, "  warning: {warning}");
    }
}

/// One event of `watch`.
pub(super) fn event(event: &Value) -> String {
    match event["event"].as_str() {
        Some("list") => {
            let by = format!("uid {} pid {}", event["by"]["uid"], event["by"]["pid"]);
            let command = event["command"].as_str().unwrap_or_default();
            let lines = diff(&event["diff"]);
            let mut text: String =
                lines.iter().map(|line| format!("list: {line} ({command} by {by})\n")).collect();
            let reset = event["reset"].as_u64().unwrap_or(0);
            if reset > 0 {
                let _ = writeln!(text, "list: {reset} {} reset", plural(reset, "connection"));
            }
            text
        }
        Some("guard") => format!("guard: {}\n", event["text"].as_str().unwrap_or_default()),
        Some("counters") => counters(event),
        Some("missed") => format!("missed {} events: this end reads too slowly\n", event["events"]),
        _ => format!("{event}\n"),
    }
}

/// What grew since a second ago, the packets first.
fn counters(event: &Value) -> String {
    let grown = |name: &str| event["grown"][name].as_u64().unwrap_or(0);
    let packets = |dropped: bool| -> u64 {
        use session_common::guard::Reason;
        let reasons = Reason::ALL.iter().filter(|reason| reason.drops() == dropped);
        reasons.map(|reason| grown(&format!("guard.{}", reason.name()))).sum()
    };
    let connections = &event["statistics"]["curr_connections"];
    format!(
        "in a second: {} packets passed, {} dropped; {} gets, {} sets; {} connections\n",
        packets(false),
        packets(true),
        grown("cmd_get"),
        grown("cmd_set"),
        connections.as_str().map_or_else(|| connections.to_string(), str::to_owned),
    )
}

fn words(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn plural(count: u64, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

/// Seconds as people say them: two units at most.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// `upgrade`: who serves now, and for how long nobody did.
pub(super) fn upgraded(answer: &Value) -> String {
    let ms = answer["pause_us"].as_f64().unwrap_or_default() / 1000.0;
    format!(
        "sessiond {} serves, pid {}, serving process {}; requests waited for {ms:.1} ms\n",
        answer["version"].as_str().unwrap_or_default(),
        answer["pid"],
        answer["child_pid"],
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_shows_what_went_and_what_came() {
        let entry = |prefix: &str, action: &str| {
            json!({"prefix": prefix, "action": action, "origin": "control",
                   "deadline_ns": null, "comment": "why"})
        };
        let answer = json!({"ok": true, "reset": 2, "diff": {
            "added": [entry("198.18.0.1/32", "allow")],
            "removed": [entry("198.18.1.0/24", "deny")],
            "changed": [],
        }});
        assert_eq!(
            changed(&answer),
            "- deny 198.18.1.0/24 # why\n+ allow 198.18.0.1/32 # why\n2 connections reset\n"
        );
        let nothing = json!({"diff": {"added": [], "removed": [], "changed": []}, "reset": 0});
        assert_eq!(changed(&nothing), "nothing to change\n");
    }

    #[test]
    fn a_list_has_a_line_an_entry() {
        let head = json!({"taken_out": ["198.18.5.0/24"], "enforced": "xdp"});
        let entries = [
            json!({"prefix": "198.18.0.0/24", "action": "allow", "origin": "config",
                   "comment": null, "left_s": null}),
            json!({"prefix": "2001:db8::7/128", "action": "deny", "origin": "control",
                   "comment": "loud", "left_s": 3_700}),
        ];
        assert_eq!(
            list(&head, &entries),
            "allow 198.18.0.0/24            config\n\
             deny  2001:db8::7/128          control 1h 1m left # loud\n\
             -     198.18.5.0/24            taken out of the configuration by sessionctl\n"
        );
        assert!(list(&json!({"taken_out": []}), &[]).contains("the list is empty"));
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in
            [(0, "0s"), (61, "1m 1s"), (3_600, "1h 0m"), (90_061, "1d 1h"), (59, "59s")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
