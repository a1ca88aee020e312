//! What a manifest's services are made from, and how a service is read again when it starts, with
//! what its env files say by then.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Assignments, Loader, absolute};
use crate::manifest::decode::{Declared, Run, Service, Target, Words};
use crate::manifest::fault::Source;
use crate::manifest::reader::Collector;
use crate::manifest::validate::ExternalNames;
use crate::model::digest::fnv;
use crate::model::{ServiceSpec, SpecRefresh};

/// What a manifest's services are made from. It is kept while any of them may start again.
pub(super) struct Given {
    pub(super) source: Arc<Source>,
    pub(super) folder: PathBuf,
    pub(super) declared: Declared,
    /// The env files of the command line.
    pub(super) env_files: Vec<PathBuf>,
    /// The variables that the running tree sets already, where this is added to one.
    pub(super) there: Arc<Assignments>,
    pub(super) process: HashMap<String, String>,
}

impl Given {
    pub(super) fn absolute(&self, path: &str) -> PathBuf {
        absolute(&self.folder, path)
    }

    /// The env files that a service's environment comes from.
    fn files_of(&self, service: &Service) -> Vec<PathBuf> {
        let named = self.declared.project.env_file.iter().chain(&service.env_file);
        named.map(|path| self.absolute(&path.value)).chain(self.env_files.iter().cloned()).collect()
    }

    /// A hash of what the manifest says about a service, as far as variables can have a part in it.
    /// Where it is written does not count.
    fn written(&self, at: usize) -> u64 {
        let service = &self.declared.services[at];
        let mut text: Vec<u8> = Vec::new();
        let mut add = |word: &str| {
            text.extend(word.as_bytes());
            text.push(0);
        };
        let words = |words: &Words| words.words.iter().map(|word| word.value.clone()).collect::<Vec<_>>();
        let mut env: Vec<String> =
            service.env.iter().map(|(name, value)| format!("{}={}", name.value, value.value)).collect();
        env.sort_unstable();
        env.iter().for_each(|entry| add(entry));
        match &service.run {
            Some(Run::Command(command)) => words(command).iter().for_each(|word| add(word)),
            Some(Run::Shell(text)) => add(&text.value),
            None => {}
        }
        let commands = service
            .stop
            .command
            .iter()
            .chain(service.on.iter().flat_map(|on| on.commands.iter().map(|(_, words)| words)));
        commands.flat_map(words).for_each(|word| add(&word));
        add(service.dir.as_ref().map_or("", |dir| dir.value.as_str()));
        let targets =
            service.ready.iter().map(|ready| &ready.target).chain(service.health.iter().map(|h| &h.target));
        for target in targets {
            match target {
                Target::Tcp(text) | Target::Http(text) | Target::Log(text) => add(&text.value),
                Target::Exec(command) => words(command).iter().for_each(|word| add(word)),
                Target::After(_) => {}
            }
        }
        fnv(&text)
    }

    /// The service as it is when it starts now, with what its env files say by now.
    fn renewed(&self, at: usize, declared: &ServiceSpec) -> Result<ServiceSpec, String> {
        let mut warnings = Vec::new();
        let collector = Collector::new(Arc::clone(&self.source));
        let mut loader = Loader::new(self, collector, &mut warnings);
        let shared = loader.project();
        // The dependencies are kept as they were declared.
        let fresh =
            loader.service(&self.declared.services[at], &shared, &HashMap::new(), &ExternalNames::default());
        match loader.collector.faults.first() {
            Some(fault) => {
                let (line, _) = fault.place();
                Err(format!("{}:{line}: {}", fault.source.path.display(), fault.message))
            }
            None => Ok(ServiceSpec {
                command: fresh.command,
                dir: fresh.dir,
                env: fresh.env,
                ready: fresh.ready,
                health: fresh.health,
                stop: fresh.stop,
                on: fresh.on,
                ..declared.clone()
            }),
        }
    }
}

/// The services, each of which can be read again if it has env files.
pub(super) fn renewable(given: Given, services: Vec<ServiceSpec>) -> Vec<Arc<ServiceSpec>> {
    let given = Arc::new(given);
    let with = |(at, mut spec): (usize, ServiceSpec)| {
        let files = given.files_of(&given.declared.services[at]);
        if !files.is_empty() {
            let given = Arc::clone(&given);
            let written = given.written(at);
            spec.renewal =
                Some(SpecRefresh::new(files, written, move |declared| given.renewed(at, declared)));
        }
        Arc::new(spec)
    };
    services.into_iter().enumerate().map(with).collect()
}
