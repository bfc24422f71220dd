//! One screen of `top`. It draws two samples and asks nobody.
#![forbid(unsafe_code)]

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Gauge, Paragraph, Row, Table};
use serde_json::Value;

use crate::control::ctl::top::sample::Sample;

/// Lines of the traffic.
const TRAFFIC_LINES: u16 = 7;
/// Refused sources that are named.
const SOURCES_SHOWN: usize = 3;

/// Draws everything.
pub(super) fn screen(frame: &mut Frame<'_>, before: &Sample, now: &Sample) {
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(TRAFFIC_LINES),
        Constraint::Length(3),
        Constraint::Min(6),
        Constraint::Min(6),
    ]);
    let [head, traffic_area, memory_area, classes_area, below] = rows.areas(frame.area());
    let [guard_area, clients_area] =
        Layout::horizontal([Constraint::Percentage(55), Constraint::Percentage(45)]).areas(below);
    let [clients_area, refused_area] =
        Layout::vertical([Constraint::Percentage(50), Constraint::Percentage(50)])
            .areas(clients_area);
    heading(frame, head, now);
    traffic(frame, traffic_area, before, now);
    memory(frame, memory_area, now);
    classes(frame, classes_area, before, now);
    guard(frame, guard_area, before, now);
    clients(frame, clients_area, now);
    refused(frame, refused_area, now);
}

fn word<'a>(now: &'a Sample, name: &str) -> &'a str {
    now.status[name].as_str().unwrap_or("-")
}

fn heading(frame: &mut Frame<'_>, area: Rect, now: &Sample) {
    let serving = now.status["serving"]["tcp"].as_array().into_iter().flatten();
    let serving: Vec<&str> = serving.filter_map(|address| address.as_str()).collect();
    let guarded = match (word(now, "enforced"), now.status["guard"]["complete"].as_bool()) {
        ("xdp", Some(true)) => "guarded".to_owned(),
        ("xdp", _) => "NOT GUARDED EVERYWHERE".to_owned(),
        ("audit", _) => "AUDIT: nobody is refused".to_owned(),
        ("off", _) => "OPEN TO EVERYBODY".to_owned(),
        (other, _) => format!("guard: {other}"),
    };
    let list = now.status["list"]["entries"].as_u64().unwrap_or(0);
    let lines = [
        format!(
            "sessiond {}  {}  {guarded}  list {list}  up {} s",
            word(now, "version"),
            serving.join(" "),
            now.status["uptime_s"].as_u64().unwrap_or(0),
        ),
        "q ends".to_owned(),
    ];
    let bold = Style::default().add_modifier(Modifier::BOLD);
    frame.render_widget(Paragraph::new(lines.map(Line::from).to_vec()).style(bold), area);
}

fn traffic(frame: &mut Frame<'_>, area: Rect, before: &Sample, now: &Sample) {
    let rate = |name: &str| now.rate(before, name);
    let (gets, hits) = (rate("cmd_get"), rate("get_hits"));
    let all = now.figure("get_hits") + now.figure("get_misses");
    let lines = vec![
        Line::from(format!(
            "gets {gets:>10.0}/s   sets {:>10.0}/s   deletes {:>8.0}/s   touches {:>8.0}/s",
            rate("cmd_set"),
            rate("delete_hits") + rate("delete_misses"),
            rate("cmd_touch"),
        )),
        Line::from(format!(
            "hit ratio {} now, {} since the start",
            percent(hits, gets),
            percent(now.figure("get_hits"), all),
        )),
        Line::from(format!(
            "read {:>10}/s   written {:>10}/s",
            size(rate("bytes_read")),
            size(rate("bytes_written")),
        )),
        Line::from(format!(
            "connections {:.0} open, {:.0}/s new   evictions {:.0}/s of unexpired items",
            now.figure("curr_connections"),
            rate("total_connections"),
            rate("evictions"),
        )),
        Line::from(format!("turns  {}", turns(&now.turns(before)))),
    ];
    frame.render_widget(Paragraph::new(lines).block(boxed("traffic")), area);
}

fn memory(frame: &mut Frame<'_>, area: Rect, now: &Sample) {
    let (bytes, limit) = (now.figure("bytes"), now.figure("limit_maxbytes"));
    let ratio = if limit > 0.0 { (bytes / limit).clamp(0.0, 1.0) } else { 0.0 };
    let label =
        format!("{:.0} items, {} of {}", now.figure("curr_items"), size(bytes), size(limit));
    let protected = match now.figure("protected_limit_bytes") {
        0.0 => String::new(),
        most => format!(
            "; protected {:.0} items, {} of {}, {:.0} lost",
            now.figure("protected_items"),
            size(now.figure("protected_bytes")),
            size(most),
            now.figure("protected_lost"),
        ),
    };
    let gauge = Gauge::default()
        .block(boxed("memory"))
        .gauge_style(Style::default().fg(Color::Green))
        .ratio(ratio)
        .label(label + &protected);
    frame.render_widget(gauge, area);
}

fn classes(frame: &mut Frame<'_>, area: Rect, before: &Sample, now: &Sample) {
    let mut used: Vec<_> = now.classes.iter().filter(|(_, class)| class.items > 0).collect();
    used.sort_by_key(|(_, class)| std::cmp::Reverse(class.bytes));
    let rows = used.into_iter().map(|(number, class)| {
        let earlier = before.classes.get(number).copied().unwrap_or_default();
        let grown = class.evicted.saturating_sub(earlier.evicted);
        Row::new([
            number.to_string(),
            class.chunk_size.to_string(),
            class.items.to_string(),
            size(class.bytes as f64),
            class.pages.to_string(),
            format!("{:.0}", now.per_second(before, grown as f64)),
            class.evicted.to_string(),
            class.evicted_nonzero.to_string(),
        ])
    });
    let head = ["class", "chunk", "items", "bytes", "pages", "evicted/s", "evicted", "with expiry"];
    let widths = [6, 9, 12, 10, 8, 10, 12, 12].map(Constraint::Length);
    let table = Table::new(rows, widths).header(header(&head)).block(boxed("memory by class"));
    frame.render_widget(table, area);
}

fn guard(frame: &mut Frame<'_>, area: Rect, before: &Sample, now: &Sample) {
    let earlier = before.packets();
    let mut packets: Vec<_> = now.packets().into_iter().filter(|(_, one)| one.1 > 0).collect();
    packets.sort_by_key(|(_, (dropped, count))| std::cmp::Reverse((*dropped, *count)));
    let rows = packets.into_iter().map(|(reason, (dropped, count))| {
        let was = earlier.get(&reason).map_or(0, |(_, count)| *count);
        let style = if dropped { Style::default().fg(Color::Red) } else { Style::default() };
        let fate = if dropped { "dropped" } else { "passed" };
        Row::new([
            Cell::from(fate),
            Cell::from(reason),
            Cell::from(count.to_string()),
            Cell::from(format!("{:.0}", now.per_second(before, count.saturating_sub(was) as f64))),
        ])
        .style(style)
    });
    let widths = [
        Constraint::Length(8),
        Constraint::Length(18),
        Constraint::Length(14),
        Constraint::Length(10),
    ];
    let head = ["guard", "reason", "packets", "/s"];
    frame.render_widget(
        Table::new(rows, widths).header(header(&head)).block(boxed("packets")),
        area,
    );
}

fn clients(frame: &mut Frame<'_>, area: Rect, now: &Sample) {
    let mut clients: Vec<_> = now.clients.iter().collect();
    clients.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let rows = clients.into_iter().map(|(address, count)| {
        let name = now.name_of(address).unwrap_or_default();
        Row::new([address.clone(), name.to_owned(), count.to_string()])
    });
    let widths = [Constraint::Min(16), Constraint::Length(12), Constraint::Length(6)];
    let table = Table::new(rows, widths).header(header(&["client", "name", "open"]));
    frame.render_widget(table.block(boxed("connections")), area);
}

/// Who is refused most, and where: both estimated from samples of dropped packets.
fn refused(frame: &mut Frame<'_>, area: Rect, now: &Sample) {
    let part = |name: &str| now.status["guard"][name].as_array().into_iter().flatten();
    let word = |one: &Value, name: &str| one[name].as_str().unwrap_or("-").to_owned();
    let packets = |one: &Value| one["packets"].as_u64().unwrap_or(0).to_string();
    let sources = part("top_sources")
        .take(SOURCES_SHOWN)
        .map(|one| Row::new([word(one, "source"), "lately".to_owned(), packets(one)]));
    let places = part("drops").map(|one| {
        let interface = one["interface"].as_str().unwrap_or("the sockets").to_owned();
        Row::new([format!("on {interface}"), word(one, "reason"), packets(one)])
    });
    let widths = [Constraint::Min(16), Constraint::Length(14), Constraint::Length(10)];
    let table = Table::new(sources.chain(places), widths);
    let table = table.header(header(&["refused", "reason", "packets"]));
    frame.render_widget(table.block(boxed("refused, about")), area);
}

fn boxed(title: &str) -> Block<'_> {
    Block::default().borders(Borders::ALL).title(title)
}

fn header<'a>(words: &[&'a str]) -> Row<'a> {
    let style = Style::default().add_modifier(Modifier::UNDERLINED);
    Row::new(words.iter().map(|word| Cell::from(*word)).collect::<Vec<_>>()).style(style)
}

/// Below what half of the turns and nearly all of them stay.
fn turns(lengths: &[(f64, u64)]) -> String {
    let all: u64 = lengths.iter().map(|(_, count)| count).sum();
    if all == 0 {
        return "none was looked at".to_owned();
    }
    let below = |part: u64| {
        let mut left = all * part / 100;
        let bound = lengths.iter().find(|(_, count)| {
            let is_here = left < *count;
            left = left.saturating_sub(*count);
            is_here
        });
        bound.map_or("-".to_owned(), |(bound_us, _)| time(*bound_us))
    };
    let (half, most) = (below(50), below(99));
    format!("half below {half}, 99 of 100 below {most}; a client waits for two at most")
}

/// Microseconds in the unit that leaves a short number.
fn time(us: f64) -> String {
    match us {
        us if us.is_infinite() => "a second".to_owned(),
        us if us < 1000.0 => format!("{us:.0} us"),
        us => format!("{:.0} ms", us / 1000.0),
    }
}

fn percent(part: f64, whole: f64) -> String {
    if whole > 0.0 { format!("{:.1} %", part / whole * 100.0) } else { "-".to_owned() }
}

/// Bytes in the largest unit that leaves a number from 1 on.
pub(super) fn size(bytes: f64) -> String {
    let units = ["B", "KB", "MB", "GB", "TB"];
    let mut value = bytes.max(0.0);
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}
