//! The picture of `top`. Every difference is told by words or shapes; colours only repeat it.

use std::fmt::Write;

use nvshare_agent_core::snapshot::{Activity, Device};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row as Cells, Table, TableState, Wrap};

use super::foreign;
use super::model::{Look, Model, Row};
use crate::admin::view;

const HELP: &str = "\
q, Esc, Ctrl-C   quit
up, down, j, k   choose a client: its notes are shown below the table
PgUp, PgDn       ten clients at once; Home and End: the first, the last
s                sort by number, activity, resident, swapped, pod
r                the other way round
?                this help

In the bars: # held by clients, + granted and not filled yet,
x foreign (programs without the library, and contexts), - reserve, . free.
`fits`: all run at once. `in turns`: they need more than there is.";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, model: &mut Model) {
    let devices = model.last.as_ref().map_or(0, |look| look.state.devices.len());
    let notes = notes(model);
    let heading = heading(model);
    let parts = Layout::vertical([
        Constraint::Length(heading.len() as u16),
        Constraint::Length((2 * devices.min(8)) as u16),
        Constraint::Min(3),
        Constraint::Length(notes.len().min(4) as u16),
        Constraint::Length(1),
    ]);
    let [top, middle, table, below, bottom] = parts.areas(frame.area());
    frame.render_widget(Paragraph::new(heading), top);
    if let Some(look) = &model.last {
        let mut devices: Vec<&Device> = look.state.devices.iter().collect();
        devices.sort_by_key(|device| device.index);
        let lines = devices.into_iter().flat_map(|device| gauge(device, middle.width));
        frame.render_widget(Paragraph::new(lines.collect::<Vec<Line>>()), middle);
    }
    let processes = model.last.as_ref().map_or(&[][..], |look| &look.state.processes);
    // The head of the clients' table, or that there are none, takes two lines.
    let table = foreign::draw(frame, processes, table, 2 + model.rows().len().min(1000) as u16);
    clients(frame, model, table);
    frame.render_widget(Paragraph::new(notes), below);
    let order = if model.reversed { ", reversed" } else { "" };
    let keys = format!(" q quit  arrows choose  s sort ({}{order})  ? help", model.sort.name());
    frame.render_widget(Paragraph::new(keys).add_modifier(Modifier::REVERSED), bottom);
    if model.help {
        help(frame);
    }
}

fn heading(model: &Model) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(Look { state, readiness, .. }) = &model.last {
        let ready = if readiness.ready { "ready".green() } else { "NOT READY".red().bold() };
        let begin = format!("nvshare-agent {}, up {}, ", state.release, view::age(state.up_seconds));
        lines.push(Line::from(vec![begin.bold(), ready]));
        let mut text = format!("{} switches", state.switches.count);
        if state.switches.seconds.count > 0 {
            let mean = state.switches.seconds.sum / state.switches.seconds.count as f64;
            let _ = write!(text, ", {mean:.3} s each");
        }
        if let Some(movement) = &model.movement {
            let _ = write!(text, "; {movement}");
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "; host memory {} of {}", state.host.handed_out, state.host.budget);
        lines.push(Line::from(text));
        let missing = readiness.missing.iter();
        lines.extend(missing.map(|missing| {
            Line::from(format!("missing: {}: {}", missing.part.name(), missing.why)).yellow()
        }));
    }
    lines.extend(model.problem.iter().map(|why| Line::from(why.clone()).red()));
    lines
}

/// A line of words and a bar.
fn gauge(device: &Device, width: u16) -> [Line<'static>; 2] {
    let turns = if device.contended { "in turns".yellow() } else { "fits".green() };
    let percent = (device.needed.0 as f64 * 100.0 / device.capacity.0.max(1) as f64).round();
    let words = format!(
        ", needs {} of {} ({percent} %): {} resident, {} swapped, {} foreign, {} free",
        device.needed, device.capacity, device.resident, device.swapped, device.foreign, device.free
    );
    let name = format!("GPU {} {} ", device.index, view::printable(&device.name)).bold();
    let shares = [
        (device.resident, '#', Color::Green),
        (device.granted.saturating_sub(device.resident), '+', Color::Cyan),
        (device.foreign, 'x', Color::Magenta),
        (device.reserve, '-', Color::Blue),
        (device.free, '.', Color::Reset),
    ];
    let all: u64 = shares.iter().map(|(bytes, ..)| bytes.0).sum::<u64>().max(1);
    let cells = u64::from(width.saturating_sub(2));
    let (mut bytes, mut drawn) = (0, 0);
    let mut bar = vec![Span::raw("[")];
    for (share, shape, color) in shares {
        bytes += share.0;
        let end = (u128::from(bytes) * u128::from(cells) / u128::from(all)) as usize;
        bar.push(Span::styled(shape.to_string().repeat(end - drawn), Style::new().fg(color)));
        drawn = end;
    }
    bar.push(Span::raw("]"));
    [Line::from(vec![name, turns, words.into()]), Line::from(bar)]
}

const HEAD: [&str; 10] =
    ["CLIENT", "PID", "POD", "NAME", "ACTIVITY", "FOR", "LEASE", "ORDERS", "NEEDED", "RESIDENT/SWAPPED"];

fn clients(frame: &mut Frame, model: &Model, area: Rect) {
    let rows = model.rows();
    if rows.is_empty() {
        frame.render_widget(Paragraph::new("\nno clients"), area);
        return;
    }
    let mut state = TableState::new().with_selected(model.place(&rows));
    let lines: Vec<[String; 10]> = rows.iter().map(|row| cells(row)).collect();
    let widths: Vec<Constraint> = (0..HEAD.len())
        .map(|column| {
            let longest = lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
            Constraint::Length(longest.max(HEAD[column].len()).min(40) as u16)
        })
        .collect();
    let lines =
        rows.iter().zip(lines).map(|(row, line)| {
            let style = color(row.activity);
            Cells::new(line.into_iter().enumerate().map(|(column, text)| {
                if column == 4 { Cell::from(text).style(style) } else { Cell::from(text) }
            }))
        });
    let table = Table::new(lines, widths)
        .column_spacing(2)
        .header(Cells::new(HEAD).style(Style::new().add_modifier(Modifier::BOLD)).top_margin(1))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut state);
}

fn cells(row: &Row) -> [String; 10] {
    [
        row.client.to_string(),
        row.pid.to_string(),
        row.owner.clone(),
        row.name.clone(),
        row.activity.name().to_owned(),
        if row.lasts > 0.0 { view::age(row.lasts) } else { "-".to_owned() },
        row.lease.map_or("-".to_owned(), |left| format!("{left:.1}s")),
        row.orders.clone(),
        row.needed.to_string(),
        format!("{} / {}", row.resident, row.swapped),
    ]
}

fn color(activity: Activity) -> Style {
    match activity {
        Activity::Running => Style::new().fg(Color::Green),
        Activity::Waiting | Activity::Stopping => Style::new().fg(Color::Yellow),
        Activity::Unyielding | Activity::Dead | Activity::Disconnected => Style::new().fg(Color::Red),
        Activity::Idle | Activity::Stopped | Activity::Exited => Style::new(),
    }
}

/// Of the chosen client, or of all.
fn notes(model: &Model) -> Vec<Line<'static>> {
    let rows = model.rows();
    let chosen = model.place(&rows).map(|place| rows[place].client);
    let told = rows.iter().filter(|row| chosen.is_none_or(|client| client == row.client));
    let lines = told.flat_map(|row| row.notes.iter().map(|note| format!("client {}: {note}", row.client)));
    lines.map(|line| Line::from(line).yellow()).collect()
}

fn help(frame: &mut Frame) {
    let area = frame.area();
    let (width, height) = (78.min(area.width), (HELP.lines().count() as u16 + 2).min(area.height));
    let middle =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, middle);
    let block = Block::bordered().title(" keys ").title_alignment(Alignment::Center);
    frame.render_widget(Paragraph::new(HELP).wrap(Wrap { trim: false }).block(block), middle);
}

#[cfg(test)]
mod tests {
    use nvshare_common::bytes::Bytes;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::admin::top::model::tests::look;

    fn drawn(model: &mut Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    fn model() -> Model {
        let mut look = look(&[(1, "waiting", 5 << 30), (2, "running", 1 << 30)]);
        look.state.devices.push(Device {
            name: "NVIDIA H200".to_owned(),
            capacity: Bytes(16 << 30),
            needed: Bytes(32 << 30),
            granted: Bytes(8 << 30),
            resident: Bytes(8 << 30),
            foreign: Bytes(4 << 30),
            free: Bytes(4 << 30),
            contended: true,
            ..Device::default()
        });
        let mut model = Model::default();
        model.look(Ok(look));
        model
    }

    #[test]
    fn devices_clients_and_keys_are_on_one_screen() {
        let text = drawn(&mut model(), 130, 24);
        for part in [
            "ready",
            "GPU 0 NVIDIA H200 in turns, needs 32 GiB of 16 GiB (200 %)",
            "ml/train-1",
            "waiting",
            "pinned, high, weight 2.5",
            "client 1: waits for host memory",
            "q quit",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        // Half, a quarter, a quarter of 128 cells.
        assert!(
            text.contains(&format!("[{}{}{}]", "#".repeat(64), "x".repeat(32), ".".repeat(32))),
            "{text}"
        );
    }

    #[test]
    fn the_smallest_terminal_is_no_panic() {
        for (width, height) in [(1, 1), (10, 3), (300, 2)] {
            let mut model = model();
            model.help = true;
            drawn(&mut model, width, height);
        }
    }

    #[test]
    fn the_help_covers_the_table_until_it_is_closed() {
        let mut model = model();
        model.help = true;
        assert!(drawn(&mut model, 100, 24).contains("sort by number"));
        model.help = false;
        assert!(!drawn(&mut model, 100, 24).contains("sort by number"));
    }
}
