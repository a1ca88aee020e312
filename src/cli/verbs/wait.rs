//! `regrow wait`.

use super::super::{code, format};
use crate::cli::args::observe::WaitArgs;
use crate::cli::connect::{print_json, talk};
use crate::cli::verbs::status::note;
use crate::control::protocol::{Wait, Waited};

pub(in crate::cli) fn wait(args: WaitArgs) -> u8 {
    let WaitArgs { services, for_, timeout, common } = args;
    let wait = Wait { services, for_: for_.into(), timeout_s: timeout.map(|t| t.as_secs_f64()) };
    talk(&common, async |mut client| {
        let waited: Waited = client.post("/v1/wait", &wait).await?;
        if common.json {
            print_json(&waited);
        } else if !waited.ok {
            for service in &waited.services {
                let note = note(service);
                let note = if note.is_empty() { note } else { format!(" ({note})") };
                tell!("{}: {}{note}", service.name, service.state);
            }
            let is_there = |name: &String| {
                waited.services.iter().any(|s| {
                    s.name == *name
                        || s.id == *name
                        || s.service.short() == name
                        || s.service.as_str() == name
                })
            };
            for name in wait.services.iter().filter(|name| !is_there(name)) {
                tell!("{name}: removed");
            }
        }
        Ok(match (waited.ok, waited.timed_out) {
            (true, _) => code::DONE,
            (false, true) => {
                if !common.json {
                    tell!("{}: not {} in time", format::error_word(), wait.for_);
                }
                code::TIMED_OUT
            }
            (false, false) => code::FAILED,
        })
    })
}
