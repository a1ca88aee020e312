//! `ls`: lists every running tree of this user.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::cli::args::observe::LsArgs;
use crate::cli::connect::{print_json, say};
use crate::cli::format::{self, Table, Tint};
use crate::cli::{code, runtime};
use crate::control::client::Client;
use crate::control::instance_dir;
use crate::model::{State, StatusReport};
use crate::present::units;
use crate::sys::terminal;

/// The time that a tree has to answer; without an answer it is listed with blank figures.
const PATIENCE: Duration = Duration::from_secs(3);

/// The object that `ls --json` prints.
#[derive(Debug, Serialize)]
struct Trees {
    trees: Vec<Tree>,
}

#[derive(Debug, Serialize)]
struct Tree {
    /// The name of the project; `daemon` for a daemon.
    name: String,
    /// Either `run` or `daemon`.
    kind: &'static str,
    pid: u32,
    /// The number of instances; `running` counts those that run. Both are `None` where the tree did not
    /// answer.
    services: Option<usize>,
    running: Option<usize>,
    uptime_s: Option<f64>,
    /// The manifest of a run, or the configuration of a daemon.
    manifest: Option<PathBuf>,
    socket: PathBuf,
}

pub(in crate::cli) fn ls(args: &LsArgs) -> u8 {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tell!("{}: {error}", format::error_word());
            return code::FAILED;
        }
    };
    let runs = instance_dir::trees()
        .into_iter()
        .map(|(socket, card)| ("run", card.pid, Some(card.manifest), socket));
    let daemon = crate::cli::daemon::card().map(|card| {
        let config = Some(card.manifest).filter(|path| !path.as_os_str().is_empty());
        ("daemon", card.pid, config, card.socket.unwrap_or_default())
    });
    let found: Vec<_> = daemon.into_iter().chain(runs).collect();
    let trees: Vec<Tree> = runtime.block_on(async {
        let mut trees = Vec::new();
        for (kind, pid, manifest, socket) in found {
            let asked = async { Client::connect(&socket).await?.get::<StatusReport>("/v1/status").await };
            let status = tokio::time::timeout(PATIENCE, asked).await.ok().and_then(Result::ok);
            let rows = status.as_ref().map(|status| &status.services);
            let runs = |rows: &Vec<_>| rows.iter().filter(|row: &&_| is_up(row)).count();
            trees.push(Tree {
                name: match (kind, &status) {
                    ("run", Some(status)) => status.daemon.project.clone(),
                    ("run", None) => "?".to_owned(),
                    _ => "daemon".to_owned(),
                },
                kind,
                pid: status.as_ref().map_or(pid, |status| status.daemon.pid),
                services: rows.map(Vec::len),
                running: rows.map(runs),
                uptime_s: status.as_ref().map(|status| status.daemon.uptime_s),
                manifest,
                socket,
            });
        }
        trees
    });
    if args.json {
        print_json(&Trees { trees });
        return code::DONE;
    }
    if trees.is_empty() {
        say("nothing is running (start something with \"regrow run\" or \"regrow daemon\")");
        return code::DONE;
    }
    let mut table = Table::new(&["NAME", "KIND", ">PID", ">RUNNING", ">UPTIME", "MANIFEST"]);
    for tree in &trees {
        let running = match (tree.running, tree.services) {
            (Some(running), Some(services)) => format!("{running} of {services}"),
            _ => "no answer".to_owned(),
        };
        table.row(vec![
            (tree.name.clone(), Tint::None),
            (tree.kind.to_owned(), Tint::None),
            (tree.pid.to_string(), Tint::None),
            (running, Tint::None),
            (tree.uptime_s.map_or("-".to_owned(), units::uptime), Tint::None),
            (tree.manifest.as_ref().map_or("-".to_owned(), |path| path.display().to_string()), Tint::Faint),
        ]);
    }
    say(&table.render(terminal::width(), format::colour_on_stdout()));
    code::DONE
}

fn is_up(row: &crate::model::ServiceStatus) -> bool {
    matches!(row.state, State::Running | State::Paused)
}
