//! `init` and `manifest-schema`: what helps to write a manifest.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use crate::cli::args::develop::InitArgs;
use crate::cli::{code, format};
use crate::manifest::keys::schema;

const STARTER: &str = include_str!("../../../config/starter.toml");

pub(in crate::cli) fn manifest_schema() -> u8 {
    // An alternate form of a JSON value is the indented one.
    say!("{:#}", schema());
    code::DONE
}

pub(in crate::cli) fn init(args: &InitArgs) -> u8 {
    let mut options = OpenOptions::new();
    options.write(true);
    if args.force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let shown = args.file.display();
    match options.open(&args.file).and_then(|mut file| file.write_all(STARTER.as_bytes())) {
        Ok(()) => {
            say!("wrote {shown}; now: regrow run");
            code::DONE
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            tell!("{}: {shown} already exists", format::error_word());
            tell!("  = help: --force overwrites it");
            code::FAILED
        }
        Err(_) if args.file.is_relative() && crate::cli::here().is_err() => {
            tell!("{}: {}", format::error_word(), crate::cli::here().unwrap_err());
            code::FAILED
        }
        Err(error) => {
            tell!("{}: can't write {shown}: {error}", format::error_word());
            code::FAILED
        }
    }
}
