//! Who is asking, where to sign in, and which cluster serves data. Anonymous until there is sign-in.

use aloft_flyteidl2::flyteidl2::{
    auth::{
        GetOAuth2MetadataRequest, GetOAuth2MetadataResponse, GetPublicClientConfigRequest,
        GetPublicClientConfigResponse, UserInfoRequest, UserInfoResponse,
    },
    cluster::{SelectClusterRequest, SelectClusterResponse, select_cluster_request::Operation},
};

use super::error::{Answer, invalid};
use crate::Control;

pub(super) async fn oauth2_metadata(
    control: &Control,
    _: GetOAuth2MetadataRequest,
) -> Answer<GetOAuth2MetadataResponse> {
    Ok(GetOAuth2MetadataResponse { issuer: control.settings().public_url.clone(), ..Default::default() })
}

pub(super) async fn public_client_config(
    control: &Control,
    _: GetPublicClientConfigRequest,
) -> Answer<GetPublicClientConfigResponse> {
    Ok(GetPublicClientConfigResponse {
        service_http_endpoint: control.settings().public_url.clone(),
        ..Default::default()
    })
}

pub(super) async fn user_info(_: &Control, _: UserInfoRequest) -> Answer<UserInfoResponse> {
    let subject = Control::anonymous();
    Ok(UserInfoResponse {
        subject: subject.id.clone(),
        name: subject.name,
        preferred_username: subject.id,
        ..Default::default()
    })
}

/// One cluster, behind this very address: an empty endpoint tells the SDK to stay on its connection (contract, 1.7).
pub(super) async fn select_cluster(control: &Control, request: SelectClusterRequest) -> Answer<SelectClusterResponse> {
    match request.operation.as_known() {
        None | Some(Operation::OPERATION_UNSPECIFIED) => Err(invalid("operation: is required")),
        Some(_) if request.resource.is_none() => {
            Err(invalid("resource: one of org_id, project_id, task_id, action_id and so on is required"))
        }
        Some(_) => Ok(SelectClusterResponse { cluster: control.settings().cluster.clone(), ..Default::default() }),
    }
}
