//! `flyteidl2.settings.SettingsService`, and what a run gets of the settings of its place.

use aloft_core::{DEFAULT_QUEUE, RunKey, Scope, Subject};
use aloft_flyteidl2::flyteidl2::{
    settings::{
        CreateSettingsRequest, CreateSettingsResponse, GetSettingsForEditRequest, GetSettingsForEditResponse,
        GetSettingsRequest, GetSettingsResponse, Settings as WireSettings, SettingsKey as WireKey, SettingsRecord,
        UpdateSettingsRequest, UpdateSettingsResponse,
    },
    task::{RunSpec, TaskSpec},
};
use aloft_store::{Blob, SettingsKey, SettingsVersion, StoreError};
use buffa::Message as _;
use connectrpc::{ConnectError, ErrorCode, RequestContext};

use super::{
    error::{Answer, invalid, not_found, shortened, wire},
    run,
};
use crate::{
    Control,
    queues::QueueRefusal,
    settings::{
        Choice, Choices, Key, Level, Value, Wrong, apply,
        check::{check, check_limits},
        place,
        resolve::Resolved,
        wire as message,
    },
};

/// Largest settings of one level, in bytes: every version is kept, and every run reads the newest.
const MAX_SETTINGS: usize = 256 << 10;

/// Most edits that a conflict tells of.
const MAX_EDITS_TOLD: usize = 5;

fn refused(wrong: &Wrong) -> ConnectError {
    invalid(wrong.to_string())
}

/// The level that a request names, once it is known to exist.
async fn level(control: &Control, key: Option<&WireKey>) -> Answer<SettingsKey> {
    let key = key.ok_or_else(|| invalid("key: is required"))?;
    let key = SettingsKey { org: control.org(&key.org), domain: key.domain.clone(), project: key.project.clone() };
    if key.domain.is_empty() && !key.project.is_empty() {
        return Err(invalid("key.domain: is required beside key.project: a project has settings in each domain"));
    }
    Scope::new(&key.org, "project", "domain").map_err(wire)?;
    if !key.domain.is_empty() {
        control.check_domain(&key.org, &key.domain).await?;
    }
    if !key.project.is_empty() {
        control.existing_project(&key.org, &key.project).await?;
    }
    Ok(key)
}

fn wire_key(key: &SettingsKey) -> WireKey {
    WireKey { org: key.org.clone(), domain: key.domain.clone(), project: key.project.clone(), ..Default::default() }
}

/// What a stored version says.
fn choices(version: &SettingsVersion) -> Answer<Choices> {
    let damaged =
        |reason: String| wire(StoreError::Corrupt(format!("the settings of {}: {reason}", place(&version.key))));
    let settings = WireSettings::decode_from_slice(&version.body).map_err(|e| damaged(e.to_string()))?;
    message::from_wire(&settings).map_err(|e| damaged(e.to_string()))
}

fn layers(versions: &[SettingsVersion]) -> Answer<Vec<(Level, Choices)>> {
    versions.iter().map(|version| Ok((Level::of(&version.key), choices(version)?))).collect()
}

/// A level's own settings as a record; version 0 if nobody has edited them.
fn record(key: &SettingsKey, version: u64, choices: &Choices) -> SettingsRecord {
    let level = Level::of(key);
    let settings = message::to_wire(choices.iter().map(|(key, choice)| (*key, choice, level)));
    SettingsRecord { key: wire_key(key).into(), settings: settings.into(), version, ..Default::default() }
}

/// The settings that count at a place, each with the level it comes from.
pub(super) async fn get(control: &Control, request: GetSettingsRequest) -> Answer<GetSettingsResponse> {
    let key = level(control, request.key.as_option()).await?;
    let versions = control.store().settings_at(&key).await.map_err(wire)?;
    let resolved = Resolved::layers(layers(&versions)?);
    let version = versions.last().filter(|v| v.key == key).map_or(0, |v| v.version);
    let record = SettingsRecord {
        key: wire_key(&key).into(),
        settings: message::to_wire(resolved.iter()).into(),
        version,
        ..Default::default()
    };
    Ok(GetSettingsResponse { settingsRecord: record.into(), ..Default::default() })
}

/// What each level that counts at a place says by itself, widest first.
pub(super) async fn get_for_edit(
    control: &Control,
    request: GetSettingsForEditRequest,
) -> Answer<GetSettingsForEditResponse> {
    let key = level(control, request.key.as_option()).await?;
    let versions = control.store().settings_at(&key).await.map_err(wire)?;
    let mut levels = Vec::new();
    for level in key.levels() {
        levels.push(match versions.iter().find(|v| v.key == level) {
            Some(version) => record(&level, version.version, &choices(version)?),
            None => record(&level, 0, &Choices::new()),
        });
    }
    Ok(GetSettingsForEditResponse { requestedKey: wire_key(&key).into(), levels, ..Default::default() })
}

pub(super) async fn create(
    control: &Control,
    context: &RequestContext,
    request: CreateSettingsRequest,
) -> Answer<CreateSettingsResponse> {
    let record = edit(control, context, request.key.as_option(), request.settings.as_option(), 0).await?;
    Ok(CreateSettingsResponse { settingsRecord: record.into(), ..Default::default() })
}

pub(super) async fn update(
    control: &Control,
    context: &RequestContext,
    request: UpdateSettingsRequest,
) -> Answer<UpdateSettingsResponse> {
    if request.version == 0 {
        return Err(invalid("version: is required; read it with GetSettingsForEdit, and create what has version 0"));
    }
    let record = edit(control, context, request.key.as_option(), request.settings.as_option(), request.version).await?;
    Ok(UpdateSettingsResponse { settingsRecord: record.into(), ..Default::default() })
}

/// Makes the version after `base` of the settings of a level: all that it says from now on.
async fn edit(
    control: &Control,
    context: &RequestContext,
    key: Option<&WireKey>,
    settings: Option<&WireSettings>,
    base: u64,
) -> Answer<SettingsRecord> {
    let key = level(control, key).await?;
    let settings = settings.ok_or_else(|| invalid("settings: is required"))?;
    let choices = message::from_wire(settings).map_err(|e| refused(&e))?;
    check_choices(control, &key, &choices).await?;
    let level = Level::of(&key);
    let canonical = message::to_wire(choices.iter().map(|(key, choice)| (*key, choice, level)));
    let body = canonical.encode_to_vec();
    if body.len() > MAX_SETTINGS {
        return Err(invalid(format!("settings: have {} bytes, more than the {MAX_SETTINGS} allowed", body.len())));
    }
    let version = SettingsVersion {
        key: key.clone(),
        version: base.saturating_add(1),
        body: body.into(),
        edited_at: control.now(),
        edited_by: Control::anonymous(),
        request: run::request_id(context).unwrap_or_default().to_owned(),
    };
    if control.store().put_settings(version.clone()).await.map_err(wire)? {
        let by = &version.edited_by.id;
        tracing::info!(place = place(&key), version = version.version, by, "settings were edited");
    } else {
        check_repeated(control, &version).await?;
    }
    Ok(record(&key, version.version, &choices))
}

/// Refuses settings that cannot be, or that name what does not exist.
async fn check_choices(control: &Control, key: &SettingsKey, choices: &Choices) -> Answer<()> {
    check(Level::of(key), choices).map_err(|e| refused(&e))?;
    for (setting, choice) in choices {
        match (setting, choice) {
            (Key::RunBaseDir | Key::RawDataPath, Choice::Value(Value::Text(uri))) => {
                check_prefix(control, key, *setting, uri)?;
            }
            (Key::DefaultQueue, Choice::Value(Value::Text(name))) => check_queue(control, &key.org, name).await?,
            _ => {}
        }
    }
    let mut levels = control.store().settings_at(key).await.map_err(wire)?;
    levels.retain(|version| version.key != *key);
    let mut all = layers(&levels)?;
    all.push((Level::of(key), choices.clone()));
    check_limits(&Resolved::layers(all)).map_err(|e| refused(&e))
}

/// Refuses a prefix that runs of the project could not write below.
fn check_prefix(control: &Control, key: &SettingsKey, setting: Key, uri: &str) -> Answer<()> {
    let scope = Scope::new(&key.org, &key.project, &key.domain).map_err(wire)?;
    if control.data().owns(&scope, uri) {
        return Ok(());
    }
    let reason = format!("{} is not in the storage of project {}", shortened(uri), key.project);
    Err(refused(&Wrong::new(setting, reason)))
}

/// Refuses a queue that does not exist: every run that names none would be refused.
async fn check_queue(control: &Control, org: &str, name: &str) -> Answer<()> {
    if name == DEFAULT_QUEUE {
        return Ok(());
    }
    match control.store().queue(org, name).await.map_err(wire)? {
        Some(queue) if queue.deleted_at.is_none() => Ok(()),
        _ => Err(refused(&Wrong::new(Key::DefaultQueue, QueueRefusal::Missing(name.to_owned()).to_string()))),
    }
}

/// Refuses an edit that came too late, unless it is the newest one sent again.
async fn check_repeated(control: &Control, wanted: &SettingsVersion) -> Answer<()> {
    let base = wanted.version - 1;
    let since = control.store().settings_history(&wanted.key, base, MAX_EDITS_TOLD).await.map_err(wire)?;
    if let Some(made) = since.first()
        && !made.request.is_empty()
        && (&made.request, &made.body) == (&wanted.request, &wanted.body)
    {
        return Ok(());
    }
    let place = place(&wanted.key);
    match (base, since.as_slice()) {
        (0, _) => Err(ConnectError::new(
            ErrorCode::AlreadyExists,
            format!("the settings of {place} exist already; read their version and update them"),
        )),
        (_, []) => Err(not_found(format!("the settings of {place} have no version {base}; read them again"))),
        (_, since) => {
            let edits: Vec<_> = since.iter().map(told).collect();
            Err(ConnectError::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "the settings of {place} have changed since version {base}: {}; read them again and repeat the edit",
                    edits.join(", ")
                ),
            ))
        }
    }
}

fn told(version: &SettingsVersion) -> String {
    let Subject { id, .. } = &version.edited_by;
    match jiff::Timestamp::from_microsecond(version.edited_at.as_micros()) {
        Ok(at) => format!("version {} by {id} at {at:.0}", version.version),
        Err(_) => format!("version {} by {id}", version.version),
    }
}

/// Fills in what `spec` leaves open from the settings of the run's place. What of them is not in the specification is
/// returned, to be stored with the run; nothing where there are no settings.
pub(super) fn apply_to_run(
    versions: &[SettingsVersion],
    run: &RunKey,
    spec: &mut RunSpec,
    task: &TaskSpec,
) -> Answer<Option<Blob>> {
    let resolved = Resolved::layers(layers(versions)?);
    apply::apply(&resolved, spec, task);
    let stored = || Blob {
        digest: apply::digest(run),
        bytes: message::to_wire(resolved.iter()).encode_to_vec().into(),
        own: true,
    };
    Ok(resolved.has_values().then(stored))
}

impl Control {
    /// The environment variables that the settings gave to a run when it was created.
    pub(crate) async fn default_envs(&self, run: &RunKey, spec: &RunSpec) -> Result<Vec<(String, String)>, StoreError> {
        if spec.default_settings.is_unset() {
            return Ok(Vec::new());
        }
        let corrupt = |reason: String| StoreError::Corrupt(format!("the settings of run {run}: {reason}"));
        let bytes = self.store().blob(&apply::digest(run)).await?.unwrap_or_default();
        let settings = WireSettings::decode_from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        let choices = message::from_wire(&settings).map_err(|e| corrupt(e.to_string()))?;
        Ok(apply::environment(&Resolved::of(Level::Project, choices)))
    }
}
