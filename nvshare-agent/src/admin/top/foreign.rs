//! The processes without the library in the picture of `top`, where the clients leave room.

use nvshare_agent_core::snapshot::Foreign;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Row as Cells, Table};

use crate::admin::foreign;

/// An empty line, the title and the names of the columns.
const ABOVE: u16 = 3;

/// Draws them at the end of `area`, below `above` lines that the clients need. What is left is for the clients.
pub(super) fn draw(frame: &mut Frame, processes: &[Foreign], area: Rect, above: u16) -> Rect {
    let room = area.height.saturating_sub(above);
    if processes.is_empty() || room <= ABOVE {
        return area;
    }
    let count = u16::try_from(processes.len()).unwrap_or(u16::MAX);
    let [left, below] =
        Layout::vertical([Constraint::Min(above), Constraint::Length(room.min(count.saturating_add(ABOVE)))])
            .areas(area);
    let shown = usize::from(below.height - ABOVE);
    let [title, table] = Layout::vertical([Constraint::Length(2), Constraint::Min(1)]).areas(below);
    let more = match processes.len() - shown.min(processes.len()) {
        0 => String::new(),
        more => format!(" ({more} more: `nvshare-agent status`)"),
    };
    let title_line = Line::from(format!("{}{more}", foreign::TITLE));
    frame.render_widget(Paragraph::new(vec![Line::default(), title_line]), title);

    let rows: Vec<[String; 6]> = foreign::rows(processes).into_iter().take(shown).collect();
    let widths = (0..foreign::HEAD.len()).map(|column| {
        let longest = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        Constraint::Length(longest.max(foreign::HEAD[column].len()).min(60) as u16)
    });
    let widths: Vec<Constraint> = widths.collect();
    let head = Cells::new(foreign::HEAD).style(Style::new().add_modifier(Modifier::BOLD));
    let rows = rows.into_iter().map(Cells::new);
    frame.render_widget(Table::new(rows, widths).column_spacing(2).header(head), table);
    left
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::draw::draw;
    use super::super::model::{Model, tests::look};
    use crate::admin::foreign::tests::process;

    fn drawn(foreign: u32, height: u16) -> String {
        let mut look = look(&[(1, "running", 5)]);
        look.state.processes = (0..foreign).map(|n| process(500 + n, "miner", "dig-0", 1 << 30)).collect();
        let mut model = Model::default();
        model.look(Ok(look));
        let mut terminal = Terminal::new(TestBackend::new(140, height)).unwrap();
        terminal.draw(|frame| draw(frame, &mut model)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn they_are_below_the_clients_with_their_pods() {
        let text = drawn(2, 24);
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in\n{text}"));
        assert!(place("ml/train-1/main") < place("processes without the library"), "{text}");
        assert!(
            place("500") < place("501") && text.contains("ml/dig-0/main") && text.contains("1 GiB"),
            "{text}"
        );
        assert!(!drawn(0, 24).contains("without the library"));
    }

    #[test]
    fn the_clients_come_first_and_what_does_not_fit_is_counted() {
        let text = drawn(40, 14);
        assert!(
            text.contains("ml/train-1/main") && text.contains(" more: `nvshare-agent status`)"),
            "{text}"
        );
        let rows = text.matches("ml/dig-0/main").count();
        assert!(rows >= 1 && text.contains(&format!("({} more", 40 - rows)), "{rows} in\n{text}");
        let small = drawn(2, 8);
        assert!(small.contains("ml/train-1/main") && !small.contains("without the library"), "{small}");
    }
}
