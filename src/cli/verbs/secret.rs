//! `secret`: keeps the values that manifests only name.

use serde::Serialize;

use crate::cli::args::daemon::SecretVerb;
use crate::cli::connect::{print_json, say};
use crate::cli::{code, format, usage_error};
use crate::model::Name;
use crate::sys::limits::leave_no_core;
use crate::vault::secrets::{SecretInfo, Vault, read_value};

pub(in crate::cli) fn secret(verb: SecretVerb) -> u8 {
    leave_no_core();
    let vault = Vault::at(crate::cli::daemon::secrets());
    match verb {
        SecretVerb::Set(args) => {
            let name = match Name::new(&args.name) {
                Ok(name) => name,
                Err(error) => {
                    return usage_error("secret", &format!("{:?} is not a valid name: {error}", args.name));
                }
            };
            told(read_value().and_then(|value| vault.set(&name, &value)).map(|()| code::DONE))
        }
        SecretVerb::Remove(args) => {
            let removed = match Name::new(&args.name) {
                Ok(name) => vault.remove(&name),
                Err(_) => Ok(false),
            };
            told(removed.map(|was| {
                if was {
                    return code::DONE;
                }
                tell!("{}: there is no secret {:?}", format::error_word(), args.name);
                code::FAILED
            }))
        }
        SecretVerb::List(args) => told(vault.list().map(|secrets| {
            if args.json {
                print_json(&Secrets { secrets });
            } else {
                for SecretInfo { name, updated } in secrets {
                    say(&format!("{name}  {}", humantime::format_rfc3339_seconds(updated)));
                }
            }
            code::DONE
        })),
    }
}

fn told(done: std::io::Result<u8>) -> u8 {
    done.unwrap_or_else(|error| {
        tell!("{}: {error}", format::error_word());
        code::FAILED
    })
}

/// The object that `secret list --json` prints.
#[derive(Debug, Serialize)]
struct Secrets {
    secrets: Vec<SecretInfo>,
}
