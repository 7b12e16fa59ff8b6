//! Owns one check of one target: asks in its rhythm, or waits for what the backend reports, and keeps
//! its machine. Never knows of the target's other checks, nor of other targets.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    health::{
        Target, Way,
        accrual::Accrual,
        heartbeat::{Beats, Silence},
        machine::{Machine, Outcome},
        probe::{Answer, ProbeError, Prober, Subject},
        reply::{Asked, Reply, Serving, Wants},
        schedule::{Schedule, seed},
    },
    model::{Check, Dns, Probe, Protocol, ServiceId, Transport, Unreachable},
    snapshot::{CheckStatus, Condition},
};

/// What the checks of a target work with.
#[derive(Debug, Clone)]
pub struct Tools<P> {
    /// Asks.
    pub prober: P,
    /// Probes that may be under way at once.
    pub permits: Arc<Semaphore>,
    /// Told of each beat of the target.
    pub beats: Arc<Notify>,
}

/// What a check knows of its backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// What it tells people.
    pub status: CheckStatus,
    /// How long the last probe took, where that says how loaded the backend is; one that was not answered in time took
    /// as long as it was given.
    pub took: Option<Duration>,
    /// Whether the last probe that blames the backend was told that nobody is there.
    pub nobody: bool,
    /// Whether it has failed as often in a row as takes the backend down.
    pub fails: bool,
    /// Whether the last probe that says anything about the backend says something against it.
    pub suspects: bool,
    /// What the backend's agent asks for.
    pub asked: Asked,
    /// When it was asked that it answered last that it has no flow left, if that was its last answer.
    pub none_left: Option<Instant>,
}

/// One check of one target.
pub struct Checking<P: Prober> {
    subject: Subject,
    check: Check,
    tools: Tools<P>,
    alone: bool,
    question: Option<Arc<P::Question>>,
    /// Makes the question ready, on a task that outlasts a probe: whoever reads a file from a server that
    /// hangs cannot be stopped, and is not to be joined by another with each probe.
    preparing: JoinSet<Result<Arc<P::Question>, ProbeError>>,
    rhythm: Rhythm,
    machine: Machine,
    finding: Finding,
    /// How long probes take, where one that takes longer is suspicious.
    usual: Option<Accrual>,
    /// When the last probe began.
    asked_at: Instant,
}

enum Rhythm {
    Probes(Schedule),
    Beats(Beats),
}

impl<P: Prober> Checking<P> {
    /// The check called `name` of `target`, which counts as `initial` until it has been judged.
    pub fn new(
        target: Target,
        name: String,
        check: &Check,
        tools: Tools<P>,
        initial: Condition,
        asked: Asked,
    ) -> Self {
        let mut address = target.address;
        address.set_port(check.port.unwrap_or(address.port()));
        let now = Instant::now();
        let beats = check.probe == Probe::Heartbeat {};
        // A silence that is that unlikely needs no second one.
        let fall = match check.phi() {
            Some(_) if beats => 1,
            _ => check.fall,
        };
        Self {
            rhythm: match check.probe {
                Probe::Heartbeat {} => Rhythm::Beats(Beats::new(check, now)),
                _ => Rhythm::Probes(Schedule::new(check, seed(&(&target, &name)), now)),
            },
            machine: Machine::new(initial, check.rise, fall),
            usual: check.phi().filter(|_| !beats).map(Accrual::new),
            finding: Finding {
                status: CheckStatus::new(name.clone(), initial),
                took: None,
                nobody: false,
                fails: false,
                suspects: false,
                asked,
                none_left: None,
            },
            subject: Subject {
                target,
                address,
                check: name,
                timeout: check.timeout,
                way: Way::default(),
                also: Arc::default(),
            },
            check: check.clone(),
            tools,
            alone: true,
            question: None,
            preparing: JoinSet::new(),
            asked_at: now,
        }
    }

    /// Whether all flows arrive at the backend's own port: who refuses there is not there at all.
    pub fn alone(self, alone: bool) -> Self {
        Self { alone, ..self }
    }

    /// How traffic reaches the backend, and of which services it is beside the target's own.
    pub fn by(mut self, way: Way, also: Arc<[ServiceId]>) -> Self {
        (self.subject.way, self.subject.also) = (way, also);
        self
    }

    /// What is known before the first probe.
    pub fn finding(&self) -> &Finding {
        &self.finding
    }

    /// Asks once more, or waits until the backend has reported or failed to; what is known then.
    pub async fn next(&mut self) -> &Finding {
        let outcome = match &mut self.rhythm {
            Rhythm::Beats(beats) => {
                let missing = next_beat(beats, &self.tools.beats).await;
                missing.map_or(Ok(None), Err)
            }
            Rhythm::Probes(schedule) => {
                let start = schedule.next(Instant::now(), self.machine.in_doubt());
                sleep_until(start).await;
                self.asked_at = Instant::now();
                self.probe().await.map(Some)
            }
        };
        self.conclude(outcome);
        &self.finding
    }

    async fn probe(&mut self) -> Result<Answer, ProbeError> {
        let question = self.question().await?;
        let permit = self.tools.permits.acquire().await;
        let _permit = permit.map_err(|error| ProbeError::Local(error.to_string()))?;
        self.tools.prober.ask(&self.subject, &question).await
    }

    /// What is asked, once it is ready; no longer than a probe may take.
    async fn question(&mut self) -> Result<Arc<P::Question>, ProbeError> {
        if let Some(question) = &self.question {
            return Ok(Arc::clone(question));
        }
        if self.preparing.is_empty() {
            let (prober, probe) = (self.tools.prober.clone(), self.check.probe.clone());
            let prepare = async move { prober.prepare(&probe).await };
            self.preparing.spawn(prepare);
        }
        let within = self.subject.timeout;
        let question = match timeout(within, self.preparing.join_next()).await {
            Ok(Some(Ok(question))) => question?,
            Ok(Some(Err(error))) => return Err(ProbeError::Local(error.to_string())),
            Ok(None) | Err(_) => {
                let problem = format!("what the check needs could not be read within {within:?}");
                return Err(ProbeError::Unaskable(problem));
            }
        };
        self.question = Some(Arc::clone(&question));
        Ok(question)
    }

    fn conclude(&mut self, outcome: Result<Option<Answer>, ProbeError>) {
        self.finding.took = self.took(&outcome);
        let slow = self.suspicion(&outcome);
        let is_slow = slow.is_some();
        let status = &mut self.finding.status;
        status.latency = None;
        let (judged, error) = match outcome {
            Ok(answer) => {
                status.latency = answer.as_ref().map(|answer| answer.latency);
                self.finding.nobody = false;
                match answer.and_then(|answer| answer.reply) {
                    Some(reply) => self.hear(&reply),
                    None => (Some(Outcome::Success), slow),
                }
            }
            Err(error) if !error.blames_backend() => (None, Some(error.to_string())),
            Err(error) if self.may_be_silent() => (Some(self.unsaid()), Some(error.to_string())),
            Err(error) => {
                self.finding.nobody = error.says_dead(self.probes_what_serves());
                (Some(Outcome::Failure), Some(error.to_string()))
            }
        };
        if let Some(outcome) = judged {
            self.machine.observe(outcome);
        }
        match judged {
            Some(Outcome::Failure | Outcome::Says(false)) => self.finding.suspects = true,
            Some(Outcome::Success | Outcome::Says(true)) => self.finding.suspects = is_slow,
            Some(Outcome::Nothing) | None => {}
        }
        self.finding.fails = self.machine.fails();
        let status = &mut self.finding.status;
        status.patience = match &self.rhythm {
            Rhythm::Beats(beats) => Some(beats.patience()),
            Rhythm::Probes(_) => None,
        };
        match judged {
            Some(Outcome::Success | Outcome::Says(true)) => status.passed += 1,
            Some(Outcome::Failure | Outcome::Says(false)) => status.failed += 1,
            Some(Outcome::Nothing) | None => status.undecided += 1,
        }
        status.condition = self.machine.condition();
        status.last_error = error;
    }

    fn took(&self, outcome: &Result<Option<Answer>, ProbeError>) -> Option<Duration> {
        let took = match outcome {
            Ok(answer) => answer.as_ref().map(|answer| answer.latency),
            Err(ProbeError::Timeout(within)) => Some(*within),
            Err(_) => None,
        };
        took.filter(|_| self.check.probe.tells_latency())
    }

    /// Why a probe that succeeded is suspicious all the same.
    fn suspicion(&mut self, outcome: &Result<Option<Answer>, ProbeError>) -> Option<String> {
        let (usual, answer) = (self.usual.as_mut()?, outcome.as_ref().ok()?.as_ref()?);
        usual.judge(answer.latency)
    }

    fn hear(&mut self, reply: &Reply) -> (Option<Outcome>, Option<String>) {
        self.finding.asked.hear(reply);
        let drained = reply.wants == Some(Wants::Drained);
        self.finding.none_left = drained.then_some(self.asked_at);
        let (outcome, error) = match &reply.serving {
            Some(Serving::Up) => (Outcome::Says(true), None),
            Some(Serving::Down(why)) => {
                let why = ProbeError::SaysDown(why.clone());
                (Outcome::Says(false), Some(why.to_string()))
            }
            None => (self.unsaid(), None),
        };
        let unknown = reply.unknown.as_ref();
        let unknown = unknown.map(|word| format!("the agent says `{word}`, which means nothing"));
        (Some(outcome), error.or(unknown))
    }

    /// What it means that an agent says neither up nor down: what it said last stays. A backend that was down
    /// for another reason, such as the former `lbd` having drained it, is not held down.
    fn unsaid(&self) -> Outcome {
        match self.finding.asked.says_down {
            true => Outcome::Nothing,
            false => Outcome::Success,
        }
    }

    fn may_be_silent(&self) -> bool {
        matches!(&self.check.probe, Probe::Agent(agent) if agent.unreachable == Unreachable::Keep)
    }

    /// Whether probes go to where all flows go.
    fn probes_what_serves(&self) -> bool {
        let protocol = match &self.check.probe {
            Probe::Tcp {} | Probe::Http(_) | Probe::Https(_) | Probe::Grpc(_) => Protocol::Tcp,
            Probe::Vip {} => Protocol::Tcp,
            Probe::Udp(_) => Protocol::Udp,
            Probe::Dns(Dns { transport, .. }) => match transport {
                Transport::Udp => Protocol::Udp,
                Transport::Tcp => Protocol::Tcp,
            },
            Probe::None {} | Probe::Icmp {} | Probe::Exec(_) => return false,
            Probe::Heartbeat {} | Probe::Agent(_) => return false,
        };
        let target = &self.subject.target;
        self.alone && protocol == target.service.protocol && self.subject.address == target.address
    }
}

/// Waits for the next beat, or until it is missing.
async fn next_beat(beats: &mut Beats, came: &Notify) -> Option<ProbeError> {
    loop {
        tokio::select! {
            biased;
            () = came.notified() => {
                beats.beat(Instant::now());
                return None;
            }
            () = sleep_until(beats.due()) => match beats.silence(Instant::now()) {
                Silence::Missed => return Some(ProbeError::Silent(beats.patience())),
                Silence::Stalled => {}
            }
        }
    }
}
