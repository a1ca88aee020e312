//! `regrow events`.

use std::path::Path;
use std::time::Duration;

use super::super::{code, format};
use crate::cli::args::observe::EventsArgs;
use crate::cli::connect::{CLOSING, print_json, query, say, socket, states, talk};
use crate::cli::usage_error;
use crate::control::client::Error;
use crate::control::protocol::Events;
use crate::model::event::TreeFact;
use crate::model::{Event, Fact};
use crate::present::fact_in_words;

pub(in crate::cli) fn show_event(event: &Event) {
    let at = humantime::format_rfc3339_millis(event.at);
    say(&format!("{:>5}  {at}  {}", event.seq, fact_in_words(&event.fact)));
}

pub(in crate::cli) fn events(args: EventsArgs) -> u8 {
    let EventsArgs { services, follow, state, since, common } = args;
    let mut path = format!("/v1/events?follow={follow}{}{}", query(&services), states(&state));
    if let Some(since) = since {
        match (since.parse::<u64>(), crate::cli::args::duration(&since)) {
            (Ok(number), _) => path.push_str(&format!("&since={number}")),
            (Err(_), Ok(age)) => path.push_str(&format!("&since_s={}", age.as_secs_f64())),
            (Err(_), Err(error)) => return usage_error("events", &format!("--since: {error}")),
        }
    }
    talk(&common, async |mut client| {
        if !follow {
            let found: Events = client.get(&path).await?;
            if common.json {
                print_json(&found);
            } else {
                found.events.iter().for_each(show_event);
            }
            return Ok(code::DONE);
        }
        let at = socket(&common).ok();
        let mut stream = client.follow(&path).await?;
        let mut last: Option<Event> = None;
        loop {
            while let Some(event) = stream.next().await? {
                match event.name.as_str() {
                    "event" => {
                        let read: Event =
                            serde_json::from_str(&event.data).map_err(|e| Error::Broken(e.to_string()))?;
                        if common.json {
                            say(&event.data);
                        } else {
                            show_event(&read);
                        }
                        last = Some(read);
                    }
                    "missed" => tell!("regrow: {} events were not shown: they came too fast", event.data),
                    "reset" => tell!("regrow: the event numbers start again: the event store was lost"),
                    _ => {}
                }
            }
            // The supervisor has ended. Unless it meant to, a next one goes on.
            let Some(Event { seq, fact, .. }) = &last else {
                return Ok(code::DONE);
            };
            let ended = matches!(fact, Fact::Tree(TreeFact::ShutdownDone));
            if ended || !crate::cli::connect::is_kept() {
                return Ok(followed_to_its_end(at.as_deref(), ended).await);
            }
            let goes_on = format!("/v1/events?follow=true&since={seq}{}{}", query(&services), states(&state));
            stream = match client.follow_again(&goes_on).await {
                Ok(stream) => stream,
                Err(Error::NotRunning(_) | Error::Broken(_)) => {
                    return Ok(followed_to_its_end(at.as_deref(), false).await);
                }
                Err(error) => return Err(error),
            };
        }
    })
}

/// Reports the end of what was followed, where no supervisor goes on. It counts as a kill unless
/// the supervisor has said so (`ended`) or has removed its socket.
pub(in crate::cli) async fn followed_to_its_end(socket: Option<&Path>, ended: bool) -> u8 {
    let until = tokio::time::Instant::now() + CLOSING;
    let is_there = || socket.is_some_and(Path::exists);
    while !ended && is_there() {
        if tokio::time::Instant::now() > until {
            tell!(
                "{}: the supervisor that was followed was killed, and no other has taken over",
                format::error_word()
            );
            return code::NOT_RUNNING;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    code::DONE
}
