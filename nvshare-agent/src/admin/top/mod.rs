//! `nvshare-agent top`: devices and clients on the whole terminal, again and again; plain tables where the output is no
//! terminal. Survives a restart of the agent. Here are the loop, the keys and the terminal; `model` holds what is shown,
//! `draw` shows it.

mod draw;
mod foreign;
mod model;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use nvshare_agent_core::snapshot::State;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::model::{Look, Model};
use super::args::TopArgs;
use super::client::Client;
use super::command::{CommandError, print, raw};
use super::view::{self, Since};

/// How soon a key or a new look is seen.
const TICK: Duration = Duration::from_millis(50);

/// Shows the agent until `q`, or prints as many tables as were asked for.
pub fn top(args: &TopArgs) -> Result<(), CommandError> {
    // An agent that is not there at all is an error and no picture.
    let first = Client::connect(&args.admin.admin_socket)?;
    let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if terminal && args.count.is_none() { screen(args, first) } else { tables(args, first) }
}

/// One table after another.
fn tables(args: &TopArgs, first: Client) -> Result<(), CommandError> {
    let mut client = Some(first);
    let mut before: Option<(State, Instant)> = None;
    for round in 0_u64.. {
        if args.count.is_some_and(|count| round >= count) {
            break;
        }
        if round > 0 {
            thread::sleep(args.every);
        }
        match look(&args.admin.admin_socket, &mut client) {
            Ok(Look { state, readiness, at, .. }) => {
                let since = before.as_ref().map(|(state, then)| Since { state, time: at - *then });
                print(&format!("{}\n", view::text(&state, &readiness, since.as_ref())))?;
                before = Some((state, at));
            }
            Err(CommandError::Ask(error)) => {
                (client, before) = (None, None);
                print(&format!("{error}\n"))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The whole terminal, until a key ends it. The terminal is put back as it was, after a panic too.
fn screen(args: &TopArgs, first: Client) -> Result<(), CommandError> {
    let looks = looks(args.admin.admin_socket.clone(), first, args.every);
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, &looks);
    ratatui::restore();
    result
}

/// Looks at the agent from a thread of its own, so that keys work while it does not answer. It ends with the receiver.
fn looks(path: PathBuf, first: Client, every: Duration) -> Receiver<Result<Look, String>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut client = Some(first);
        loop {
            let look = look(&path, &mut client).map_err(|error| {
                client = None;
                error.to_string()
            });
            if sender.send(look).is_err() {
                return;
            }
            thread::sleep(every);
        }
    });
    receiver
}

fn show(terminal: &mut DefaultTerminal, looks: &Receiver<Result<Look, String>>) -> Result<(), CommandError> {
    let mut model = Model::default();
    // The first look is worth a moment's wait: no empty picture before it.
    match looks.recv_timeout(Duration::from_secs(1)) {
        Ok(look) => model.look(look),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
    }
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut model))?;
        let mut changed = false;
        while !changed {
            if event::poll(TICK)? {
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => {
                        if press(&mut model, key) {
                            return Ok(());
                        }
                        changed = true;
                    }
                    Event::Resize(..) => changed = true,
                    _ => {}
                }
            }
            match looks.try_recv() {
                Ok(look) => {
                    model.look(look);
                    changed = true;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Does what a key asks for. Says whether that is the end.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Esc if model.help => model.help = false,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('?' | 'h') => model.help = !model.help,
        KeyCode::Char('s') => model.sort = model.sort.next(),
        KeyCode::Char('r') => model.reversed = !model.reversed,
        KeyCode::Up | KeyCode::Char('k') => model.step(-1),
        KeyCode::Down | KeyCode::Char('j') => model.step(1),
        KeyCode::PageUp => model.step(-10),
        KeyCode::PageDown => model.step(10),
        KeyCode::Home => model.step(isize::MIN),
        KeyCode::End => model.step(isize::MAX),
        _ => {}
    }
    false
}

fn look(path: &Path, client: &mut Option<Client>) -> Result<Look, CommandError> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(path)?),
    };
    let (state, readiness) = raw(client)?;
    Look::new(state, readiness).map_err(|error| CommandError::Answer(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::top::model::Sort;

    #[test]
    fn keys_do_what_the_help_says() {
        let mut model = Model::default();
        let mut key = |code| press(&mut model, KeyEvent::new(code, KeyModifiers::NONE));
        assert!(!key(KeyCode::Char('?')) && !key(KeyCode::Esc), "the first Esc closes the help");
        assert!(key(KeyCode::Esc) && key(KeyCode::Char('q')) && !key(KeyCode::Char('s')));
        assert_eq!((model.help, model.sort), (false, Sort::default().next()));
        assert!(press(&mut model, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }
}
