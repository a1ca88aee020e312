//! `regrow down`.

use std::time::Duration;

use super::super::connect::say;
use super::super::{code, format};
use crate::cli::args::control::DownArgs;
use crate::cli::connect::{LEAVING, WORDLESS, print_json, talk};
use crate::control::protocol::Down;
use crate::host::processes;
use crate::model::StatusReport;
use crate::present::units::{few, lost_sight, short};

pub(in crate::cli) fn down(args: DownArgs) -> u8 {
    let DownArgs { common } = args;
    talk(&common, async |mut client| {
        let status: StatusReport = client.get("/v1/status").await?;
        // The process is pinned while it lives: its pid may belong to another process afterwards.
        let ends = processes::SupervisorEnd::of_supervisor(status.daemon.pid);
        let down: Down = client.post("/v1/down", &()).await?;
        drop(client);
        let services = status.services.len();
        let longest = Duration::try_from_secs_f64(down.hooks_may_take_s).unwrap_or(Duration::MAX);
        let leaving = LEAVING.saturating_add(longest);
        // A hook of the tree, or a service of it, must not wait: the supervisor waits for it to end.
        let waits = std::env::var_os("REGROW_SOCKET").is_none();
        // A short wait is not announced.
        let mut gone = !waits || (!down.hooks.is_empty() && ends.wait(WORDLESS));
        if !gone && !down.hooks.is_empty() && !common.json {
            let names = few(&down.hooks);
            let down = if down.stuck.is_empty() { "every service is down" } else { "all else is down" };
            say(&format!("{down}; waiting for {names}, {} at most", short(longest)));
        }
        gone = gone || ends.wait(leaving);
        if common.json {
            print_json(&down);
        } else if !down.stuck.is_empty() || !down.lost_sight.is_empty() {
            for lost in &down.lost_sight {
                tell!("{}: {}: {}", format::error_word(), lost.name, lost_sight(lost.of));
            }
            for stuck in &down.stuck {
                let pid = stuck.pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
                tell!(
                    "{}: {}{pid} is stuck in the kernel: SIGKILL has not ended it; all else is down",
                    format::error_word(),
                    stuck.name
                );
            }
        } else {
            let what = match status.daemon.manifest {
                None if status.daemon.is_daemon => "daemon".to_owned(),
                _ => status.daemon.project.clone(),
            };
            let noun = if services == 1 { "service" } else { "services" };
            let tasks = match down.tasks {
                0 => String::new(),
                1 => ", 1 command of the pool was ended".to_owned(),
                count => format!(", {count} commands of the pool were ended"),
            };
            say(&format!(
                "everything is down: stopped {what} (pid {}, {services} {noun}{tasks})",
                status.daemon.pid
            ));
        }
        if !gone {
            tell!(
                "regrow: the supervisor (pid {}) has not ended within {}",
                status.daemon.pid,
                short(leaving)
            );
            return Ok(code::FAILED);
        }
        Ok(if down.ok { code::DONE } else { code::FAILED })
    })
}
