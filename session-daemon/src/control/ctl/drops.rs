//! Samples of dropped packets for people: `watch drops` and `top-sources`. Pure: JSON in, text out.
#![forbid(unsafe_code)]

use std::fmt::Write;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// One dropped packet.
pub(super) fn line(drop: &Value) -> String {
    let word = |name: &str, none: &str| drop[name].as_str().unwrap_or(none).to_owned();
    let port = drop["port"].as_u64().map_or_else(|| "-".to_owned(), |port| port.to_string());
    let mut text = format!(
        "drop: {} to {} port {} on {}: {}",
        word("source", "unknown"),
        word("protocol", "-"),
        port,
        word("interface", "the socket"),
        word("reason", "unknown"),
    );
    if let Some(answer) = drop["answer"].as_str() {
        let _ = write!(text, ", answer: {answer}");
    }
    let packets = drop["packets"].as_u64().unwrap_or(1);
    if packets > 1 {
        let _ = write!(text, " (one of {packets})");
    }
    text.push('\n');
    text
}

/// The part of `status` that `top-sources` shows.
pub(super) fn top_answer(status: &Value) -> Result<Value> {
    let guard = &status["guard"];
    ensure!(guard.is_object(), "no guard is attached, so nothing is sampled");
    Ok(json!({"ok": true, "top_sources": guard["top_sources"]}))
}

/// The sources that are refused most.
pub(super) fn top(answer: &Value) -> String {
    let sources = answer["top_sources"].as_array().cloned().unwrap_or_default();
    if sources.is_empty() {
        return "nobody was refused lately\n".to_owned();
    }
    let mut text = String::new();
    for source in sources {
        let packets = source["packets"].as_u64().unwrap_or(0);
        let address = source["source"].as_str().unwrap_or_default();
        let _ = writeln!(text, "{packets:>12} packets from {address}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_one_line_whatever_is_known_of_it() {
        let drop = json!({"source": "198.18.0.66", "port": 11211, "protocol": "tcp",
            "reason": "not_listed", "interface": "eth0", "answer": "reset", "packets": 3});
        let text = line(&drop);
        assert_eq!(
            text,
            "drop: 198.18.0.66 to tcp port 11211 on eth0: not_listed, answer: reset (one of 3)\n"
        );
        let drop = json!({"source": null, "port": null, "protocol": null,
            "reason": "too_many_tags", "interface": "eth0", "answer": null, "packets": 1});
        assert_eq!(line(&drop), "drop: unknown to - port - on eth0: too_many_tags\n");
    }

    #[test]
    fn top_sources_need_a_guard() {
        assert!(top_answer(&json!({"guard": null})).is_err());
        let status = json!({"guard": {"top_sources": [{"source": "::1", "packets": 7}]}});
        let answer = top_answer(&status).unwrap();
        assert!(top(&answer).contains("7 packets from ::1"));
        assert!(top(&json!({"top_sources": []})).contains("nobody"));
    }
}
