//! `regrow why`.

use super::super::code;
use super::super::connect::say;
use crate::cli::args::observe::WhyArgs;
use crate::cli::connect::{print_json, talk};
use crate::control::client::encode;
use crate::control::protocol::WhyReport;
use crate::model::State;

pub(in crate::cli) fn why(args: WhyArgs) -> u8 {
    let WhyArgs { service, common } = args;
    talk(&common, async |mut client| {
        let report: WhyReport = client.get(&format!("/v1/why?service={}", encode(&service))).await?;
        if common.json {
            print_json(&report);
            return Ok(code::DONE);
        }
        for (at, why) in report.services.iter().enumerate() {
            if at > 0 {
                say("");
            }
            for (depth, link) in why.chain.iter().enumerate() {
                let arrow =
                    if depth == 0 { String::new() } else { format!("{}└─ ", "   ".repeat(depth - 1)) };
                say(&format!("{arrow}{} is {}: {}", link.name, link.state, link.because));
            }
            // A healthy service needs no last lines.
            if let Some(end) = why.chain.last()
                && !why.last_lines.is_empty()
                && (matches!(end.state, State::Failed | State::Crashed) || why.check.is_some())
            {
                say(&format!("last lines of {}:", end.name));
                why.last_lines.iter().for_each(|line| say(&format!("  {line}")));
            }
        }
        Ok(code::DONE)
    })
}
