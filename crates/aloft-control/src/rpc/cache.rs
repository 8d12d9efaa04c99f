//! `flyteidl2.cacheservice.CacheService`, both versions: the same cache that the engine uses, for clients that bring their
//! own results. The first version has no scope in its requests, so its keys live in the project and domain
//! [`LEGACY`] of the default organisation.

use std::time::Duration;

use aloft_core::{CacheEntry, CachePlan, CacheScope, OutputRefs, Reservation, Scope};
use aloft_flyteidl2::flyteidl2::cacheservice::{
    CachedOutput, DeleteCacheRequest, DeleteCacheResponse, GetCacheRequest, GetCacheResponse,
    GetOrExtendReservationRequest, GetOrExtendReservationResponse, Metadata, OverwriteOutput, PutCacheRequest,
    PutCacheResponse, ReleaseReservationRequest, ReleaseReservationResponse, Reservation as WireReservation,
    cached_output,
};
use buffa::Message as _;
use buffa_types::google::protobuf::Duration as WireDuration;
use connectrpc::{ConnectError, ErrorCode};

use super::{
    convert,
    error::{Answer, bounded, invalid, not_found, shortened, wire},
};
use crate::Control;

/// The project and domain of keys that come without a scope.
const LEGACY: &str = "cache";

/// Longest key or owner, in bytes.
const MAX_NAME: usize = 1024;

/// Most metadata of one result, in bytes.
const MAX_METADATA: usize = 64 << 10;

/// A reservation lapses after this many heartbeats that did not come.
const MISSED: u32 = 3;

/// Bounds of the heartbeat: short enough that a dead holder is replaced soon, long enough not to be all traffic.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

fn legacy_scope(control: &Control) -> Answer<Scope> {
    control.scope("", LEGACY, LEGACY)
}

fn checked<'k>(field: &str, text: &'k str) -> Answer<&'k str> {
    if text.is_empty() {
        return Err(invalid(format!("{field}: is required")));
    }
    bounded(field, text, MAX_NAME)?;
    Ok(text)
}

fn missing(key: &str) -> ConnectError {
    not_found(format!("nothing is cached under {}", shortened(key)))
}

async fn get_in(control: &Control, scope: &Scope, request: &GetCacheRequest) -> Answer<GetCacheResponse> {
    let key = checked("key", &request.key)?;
    let plan = CachePlan { key: key.to_owned(), scope: CacheScope::ProjectDomain, ..CachePlan::default() };
    let entries = control.store().cached(scope, &plan).await.map_err(wire)?;
    let entry = entries.into_iter().next().ok_or_else(|| missing(key))?;
    let mut metadata = Metadata::decode_from_slice(&entry.metadata).unwrap_or_default();
    metadata.created_at = convert::timestamp(entry.created_at).into();
    metadata.last_updated_at = convert::timestamp(entry.updated_at).into();
    let output = CachedOutput {
        output: Some(cached_output::Output::OutputUri(entry.outputs.output_uri)),
        metadata: metadata.into(),
        ..Default::default()
    };
    Ok(GetCacheResponse { output: output.into(), ..Default::default() })
}

async fn put_in(control: &Control, scope: &Scope, request: PutCacheRequest) -> Answer<PutCacheResponse> {
    let key = checked("key", &request.key)?.to_owned();
    let output = request.output.as_option().ok_or_else(|| invalid("output: is required"))?;
    let uri = match &output.output {
        Some(cached_output::Output::OutputUri(uri)) if !uri.is_empty() => uri.clone(),
        // Values are users' data, which the control plane does not keep (design rule 7).
        Some(cached_output::Output::OutputLiterals(_)) => {
            return Err(invalid(
                "output.output_literals: values are not kept here; store them and name their output_uri",
            ));
        }
        _ => return Err(invalid("output.output_uri: is required")),
    };
    let metadata = output.metadata.as_option().map(|m| m.encode_to_vec()).unwrap_or_default();
    if metadata.len() > MAX_METADATA {
        return Err(invalid(format!(
            "output.metadata: has {} bytes, more than the {MAX_METADATA} allowed",
            metadata.len()
        )));
    }
    let now = control.now();
    let overwrite = overwrites(control, scope, &key, request.overwrite.as_option()).await?;
    let outputs = OutputRefs { output_uri: uri, ..OutputRefs::default() };
    let entry = CacheEntry { outputs, source: None, metadata, created_at: now, updated_at: now };
    if !control.store().put_cached(scope, &key, entry, overwrite).await.map_err(wire)? {
        let message = format!("{} is cached already; set overwrite to replace it", shortened(&key));
        return Err(ConnectError::new(ErrorCode::AlreadyExists, message));
    }
    Ok(PutCacheResponse::default())
}

/// Whether a result that is there is replaced: on demand, or because it is older than it may be.
async fn overwrites(control: &Control, scope: &Scope, key: &str, wanted: Option<&OverwriteOutput>) -> Answer<bool> {
    let Some(wanted) = wanted else { return Ok(false) };
    if wanted.overwrite {
        return Ok(true);
    }
    let Some(max_age) = wanted.max_age.as_option() else { return Ok(false) };
    let max_age = convert::checked_millis("overwrite.max_age", max_age)?;
    let plan = CachePlan { key: key.to_owned(), scope: CacheScope::ProjectDomain, ..CachePlan::default() };
    let entries = control.store().cached(scope, &plan).await.map_err(wire)?;
    Ok(max_age > 0 && entries.first().is_some_and(|e| !e.is_fresh(Some(max_age), control.now())))
}

async fn delete_in(control: &Control, scope: &Scope, request: &DeleteCacheRequest) -> Answer<DeleteCacheResponse> {
    let key = checked("key", &request.key)?;
    if !control.store().drop_cached(scope, key, "").await.map_err(wire)? {
        return Err(missing(key));
    }
    Ok(DeleteCacheResponse::default())
}

async fn reserve_in(
    control: &Control,
    scope: &Scope,
    request: &GetOrExtendReservationRequest,
) -> Answer<GetOrExtendReservationResponse> {
    let key = checked("key", &request.key)?;
    let owner = checked("owner_id", &request.owner_id)?;
    let asked = request.heartbeat_interval.as_option();
    let asked = asked.map(|d| convert::checked_millis("heartbeat_interval", d)).transpose()?.unwrap_or(0);
    let heartbeat = Duration::from_millis(asked).clamp(HEARTBEAT.0, HEARTBEAT.1);
    let now = control.now();
    let wanted = Reservation { owner: owner.to_owned(), expires_at: Some(now.plus(heartbeat * MISSED)) };
    let held = control.store().reserve(scope, key, wanted, now).await.map_err(wire)?;
    let reservation = WireReservation {
        key: key.to_owned(),
        owner_id: held.owner,
        heartbeat_interval: WireDuration {
            seconds: i64::try_from(heartbeat.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(heartbeat.subsec_nanos()).unwrap_or(0),
            ..Default::default()
        }
        .into(),
        expires_at: held.expires_at.map(convert::timestamp).into(),
        ..Default::default()
    };
    Ok(GetOrExtendReservationResponse { reservation: reservation.into(), ..Default::default() })
}

/// Giving back what is not held is success, so that a repetition is harmless.
async fn release_in(
    control: &Control,
    scope: &Scope,
    request: &ReleaseReservationRequest,
) -> Answer<ReleaseReservationResponse> {
    let (key, owner) = (checked("key", &request.key)?, checked("owner_id", &request.owner_id)?);
    control.store().release(scope, key, owner).await.map_err(wire)?;
    Ok(ReleaseReservationResponse::default())
}

pub(super) async fn get(control: &Control, request: GetCacheRequest) -> Answer<GetCacheResponse> {
    get_in(control, &legacy_scope(control)?, &request).await
}

pub(super) async fn put(control: &Control, request: PutCacheRequest) -> Answer<PutCacheResponse> {
    put_in(control, &legacy_scope(control)?, request).await
}

pub(super) async fn delete(control: &Control, request: DeleteCacheRequest) -> Answer<DeleteCacheResponse> {
    delete_in(control, &legacy_scope(control)?, &request).await
}

pub(super) async fn reserve(
    control: &Control,
    request: GetOrExtendReservationRequest,
) -> Answer<GetOrExtendReservationResponse> {
    reserve_in(control, &legacy_scope(control)?, &request).await
}

pub(super) async fn release(
    control: &Control,
    request: ReleaseReservationRequest,
) -> Answer<ReleaseReservationResponse> {
    release_in(control, &legacy_scope(control)?, &request).await
}

/// The second version, whose requests carry the scope of their key.
pub(super) mod v2 {
    use aloft_flyteidl2::flyteidl2::cacheservice::v2::{
        DeleteCacheRequest, GetCacheRequest, GetOrExtendReservationRequest, Identifier, PutCacheRequest,
        ReleaseReservationRequest,
    };

    use super::{
        Answer, Control, DeleteCacheResponse, GetCacheResponse, GetOrExtendReservationResponse, PutCacheResponse,
        ReleaseReservationResponse, Scope, invalid,
    };

    fn scope(control: &Control, id: Option<&Identifier>) -> Answer<Scope> {
        let id = id.ok_or_else(|| invalid("identifier: is required"))?;
        control.scope(&id.org, &id.project, &id.domain)
    }

    pub(in crate::rpc) async fn get(control: &Control, request: GetCacheRequest) -> Answer<GetCacheResponse> {
        let scope = scope(control, request.identifier.as_option())?;
        super::get_in(control, &scope, &request.base_request.into_option().unwrap_or_default()).await
    }

    pub(in crate::rpc) async fn put(control: &Control, request: PutCacheRequest) -> Answer<PutCacheResponse> {
        let scope = scope(control, request.identifier.as_option())?;
        super::put_in(control, &scope, request.base_request.into_option().unwrap_or_default()).await
    }

    pub(in crate::rpc) async fn delete(control: &Control, request: DeleteCacheRequest) -> Answer<DeleteCacheResponse> {
        let scope = scope(control, request.identifier.as_option())?;
        super::delete_in(control, &scope, &request.base_request.into_option().unwrap_or_default()).await
    }

    pub(in crate::rpc) async fn reserve(
        control: &Control,
        request: GetOrExtendReservationRequest,
    ) -> Answer<GetOrExtendReservationResponse> {
        let scope = scope(control, request.identifier.as_option())?;
        super::reserve_in(control, &scope, &request.base_request.into_option().unwrap_or_default()).await
    }

    pub(in crate::rpc) async fn release(
        control: &Control,
        request: ReleaseReservationRequest,
    ) -> Answer<ReleaseReservationResponse> {
        let scope = scope(control, request.identifier.as_option())?;
        super::release_in(control, &scope, &request.base_request.into_option().unwrap_or_default()).await
    }
}
