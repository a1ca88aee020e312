//! Supervises two processes from a Rust program: a worker that crashes now and then and grows back,
//! and a watcher that starts once the worker is ready.
//!
//! `cargo run --no-default-features --example embed`

use std::time::Duration;

use regrow::actors::event_log::NextEvent;
use regrow::model::{
    Condition, Dependency, Fact, InstanceFact, Name, Plan, ReadySpec, ReadyTarget, ServiceSpec,
};
use regrow::runtime::{Handle, Options};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut worker = ServiceSpec::new(Name::new("worker")?, ["sh", "-c", "echo at work; sleep 0.4; exit 1"]);
    worker.ready = Some(ReadySpec { target: ReadyTarget::Log("at work".into()), deadline: None });
    worker.restart.backoff.initial = Duration::from_millis(50);
    let mut watcher = ServiceSpec::new(Name::new("watcher")?, ["sleep", "60"]);
    watcher.depends_on =
        vec![Dependency { on: worker.name.clone(), condition: Condition::Ready, required: true }];

    let tree = Handle::start(Plan::of("embedded", vec![worker, watcher]), Options::default()).await?;

    // The program subscribes to all events itself, from the first one on.
    let mut events = tree.events_from(0);
    let subscriber = tokio::spawn(async move {
        let mut returns = 0;
        while returns < 3 {
            if let NextEvent::Event(event) = events.next().await {
                match &event.fact {
                    Fact::Instance(InstanceFact::Ready { instance, .. }) => {
                        println!("{:>3} {instance} is ready", event.seq);
                    }
                    Fact::Instance(InstanceFact::Crashed { instance, exit, .. }) => {
                        println!("{:>3} {instance} fell ({exit}) and grows back", event.seq);
                        returns += 1;
                    }
                    _ => {}
                }
            }
        }
    });
    subscriber.await?;

    for service in tree.status().services {
        println!("{}: {}, {} restarts", service.name, service.state, service.restarts);
    }
    tree.shutdown().await?;
    println!("nothing is left");
    Ok(())
}
