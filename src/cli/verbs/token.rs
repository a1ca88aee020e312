//! `token`: manages the tokens of the network API.

use std::time::SystemTime;

use serde::Serialize;

use crate::cli::args::daemon::{TokenCreateArgs, TokenVerb};
use crate::cli::connect::{print_json, say};
use crate::cli::format::{self, Table, Tint};
use crate::cli::{code, usage_error};
use crate::decide::access::Permission;
use crate::model::Name;
use crate::sys::terminal;
use crate::vault::tokens::{Token, Tokens};

pub(in crate::cli) fn token(verb: TokenVerb) -> u8 {
    let config = match &verb {
        TokenVerb::Create(args) => &args.config,
        TokenVerb::List(args) => &args.config,
        TokenVerb::Revoke(args) => &args.config,
    };
    let tokens = match crate::cli::daemon::tokens(config.as_deref()) {
        Ok(tokens) => tokens,
        Err(unusable) => {
            let path = unusable.path.display();
            tell!("{}: the configuration {path} can't be used: {}", format::error_word(), unusable.why);
            return code::MANIFEST;
        }
    };
    match verb {
        TokenVerb::Create(args) => create(&tokens, &args),
        TokenVerb::List(args) => told(tokens.list().map(|all| list(all, args.json))),
        TokenVerb::Revoke(args) => told(tokens.revoke(&args.name).map(|was| {
            if was {
                say(&format!("revoked: {}", args.name));
                return code::DONE;
            }
            tell!("{}: there is no token {:?}", format::error_word(), args.name);
            code::FAILED
        })),
    }
}

/// The object that `token create --json` prints.
#[derive(Serialize)]
struct Created<'a> {
    name: &'a Name,
    token: &'a str,
}

fn create(tokens: &Tokens, args: &TokenCreateArgs) -> u8 {
    let name = match Name::new(&args.name) {
        Ok(name) => name,
        Err(error) => return usage_error("token", &format!("{:?} is not a valid name: {error}", args.name)),
    };
    let permissions: Result<Vec<Permission>, String> = args.allow.iter().map(|text| text.parse()).collect();
    let permissions = match permissions {
        Ok(permissions) => permissions,
        Err(why) => return usage_error("token", &format!("--allow: {why}")),
    };
    let expires = args.expires.map(|after| SystemTime::now().checked_add(after));
    if expires == Some(None) {
        return usage_error("token", "--expires: this time is too far in the future");
    }
    told(tokens.create(&name, permissions, expires.flatten()).map(|plain| {
        if args.json {
            print_json(&Created { name: &name, token: plain.reveal() });
        } else {
            say(plain.reveal());
            tell!("keep this token: it is not shown again");
        }
        code::DONE
    }))
}

/// The object that `token list --json` prints.
#[derive(Serialize)]
struct All {
    tokens: Vec<Token>,
}

fn list(tokens: Vec<Token>, json: bool) -> u8 {
    if json {
        print_json(&All { tokens });
        return code::DONE;
    }
    let mut table = Table::new(&["NAME", "PERMISSIONS", "CREATED", "EXPIRES"]);
    let now = SystemTime::now();
    for token in tokens {
        let permissions: Vec<String> = token.permissions.iter().map(ToString::to_string).collect();
        let time = |at| humantime::format_rfc3339_seconds(at).to_string();
        let expires = match token.expires {
            None => "never".to_owned(),
            Some(at) if at <= now => "expired".to_owned(),
            Some(at) => time(at),
        };
        let cells = [token.name.to_string(), permissions.join(" "), time(token.created), expires];
        table.row(cells.map(|text| (text, Tint::None)).to_vec());
    }
    say(&table.render(terminal::width(), format::colour_on_stdout()));
    code::DONE
}

fn told(done: std::io::Result<u8>) -> u8 {
    done.unwrap_or_else(|error| {
        tell!("{}: {error}", format::error_word());
        code::FAILED
    })
}
