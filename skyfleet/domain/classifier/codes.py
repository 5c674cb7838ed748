"""Error codes as data: what each cloud's own codes mean, and how far each reaches.

A code is looked up without regard to case and punctuation (`QUOTA_EXCEEDED` is `quotaExceeded`). One that is a
plain word (`Unsupported`) counts only where a code stands: in parentheses, before a colon, in a `code` field.
A code without a scope takes it from the text around it, or from the cloud (`default_scope`).
"""

from __future__ import annotations

from skyfleet.domain.classifier.verdict import (
    ACCOUNT,
    AUTH,
    CAPACITY,
    CLOUD,
    CONFIG,
    PREEMPTED,
    QUOTA,
    REGION,
    TIMEOUT,
    TRANSIENT,
    ZONE,
    Topic,
    Verdict,
)


def _table(*groups: tuple[str, Verdict]) -> dict[str, Verdict]:
    return {code: verdict for codes, verdict in groups for code in codes.split()}


#: Amazon EC2 API Reference, "Error codes"; EC2 instance state reasons; EC2 Spot request status codes;
#: Service Quotas and STS common errors; Karpenter's list of unfulfillable-capacity codes.
AWS = _table(
    (
        """InsufficientInstanceCapacity InsufficientHostCapacity InsufficientReservedInstanceCapacity
        InsufficientCapacity InsufficientCapacityException InsufficientVolumeCapacity UnfulfillableCapacity
        InsufficientCapacityOnOutpost InsufficientResources OutOfCapacity capacity-not-available
        capacity-oversubscribed constraint-not-fulfillable az-group-constraint launch-group-constraint
        placement-group-constraint placement-constraint""",
        Verdict(CAPACITY, ZONE),
    ),
    ("InsufficientAddressCapacity", Verdict(CAPACITY, REGION, Topic.ADDRESSES)),
    ("InsufficientFreeAddressesInSubnet", Verdict(CAPACITY, ZONE, Topic.ADDRESSES)),
    (
        """ReservationCapacityExceeded CapacityReservationCapacityExceeded InsufficientCapacityReservation
        CapacityReservationUnavailable""",
        Verdict(CAPACITY, ZONE, Topic.RESERVATION),
    ),
    # One type is not offered everywhere: EC2 answers so for a zone that does not have it.
    ("Unsupported UnsupportedInstanceType InstanceTypeNotSupported", Verdict(CAPACITY, ZONE, Topic.NOT_OFFERED)),
    # Each zone has its own spot price, and it falls again.
    ("SpotMaxPriceTooLow price-too-low not-scheduled-yet", Verdict(CAPACITY, ZONE, Topic.PRICE)),
    (
        """VcpuLimitExceeded InstanceLimitExceeded MaxSpotInstanceCountExceeded MaxFleetCountExceeded
        MaxSpotFleetRequestCountExceeded VolumeLimitExceeded AddressLimitExceeded VpcLimitExceeded
        SubnetLimitExceeded SecurityGroupLimitExceeded RulesPerSecurityGroupLimitExceeded
        SecurityGroupsPerInstanceLimitExceeded SecurityGroupsPerInterfaceLimitExceeded
        NetworkInterfaceLimitExceeded AttachmentLimitExceeded InternetGatewayLimitExceeded
        RouteTableLimitExceeded MaxIOPSLimitExceeded SnapshotLimitExceeded KeyPairLimitExceeded
        HostLimitExceeded ReservedInstancesLimitExceeded InstanceReservationLimitExceeded ResourceLimitExceeded
        ResourceCountExceeded ResourceCountLimitExceeded LaunchTemplateLimitExceeded TagLimitExceeded
        PlacementGroupLimitExceeded CapacityReservationLimitExceeded
        ServiceQuotaExceeded ServiceQuotaExceededException LimitExceeded LimitExceededException
        QuotaExceeded QuotaExceededException FleetLimitExceeded NatGatewayLimitExceeded EIPLimitExceeded
        PrivateIpAddressLimitExceeded DedicatedHostLimitExceeded""",
        Verdict(QUOTA, REGION),
    ),
    (
        """RequestLimitExceeded Throttling ThrottlingException Throttled ThrottledException RequestThrottled
        RequestThrottledException EC2ThrottledException TooManyRequestsException TooManyRequests SlowDown
        BandwidthLimitExceeded PriorRequestNotComplete TransactionInProgressException""",
        Verdict(TRANSIENT, REGION, Topic.RATE_LIMIT),
    ),
    (
        """InternalError InternalFailure InternalServiceError InternalServerError InternalServerException
        ServerInternal ServiceUnavailable ServiceUnavailableException Unavailable system-error
        ServiceException ServerInternalError InternalServiceFault""",
        Verdict(TRANSIENT, REGION),
    ),
    (
        "RequestTimeout RequestTimeoutException",
        Verdict(TRANSIENT, REGION, Topic.NETWORK),
    ),
    # EC2 is eventually consistent: what was just made may not be found yet, or be in the state before.
    (
        """InvalidInstanceID.NotFound InvalidSpotInstanceRequestID.NotFound InvalidNetworkInterfaceID.NotFound
        InvalidVolume.NotFound InvalidFleetId.NotFound IncorrectInstanceState IncorrectState
        IncorrectSpotRequestState InvalidInstanceState DependencyViolation ResourceNotReady
        ConcurrentModification IdempotentInstanceTerminated ConflictException VolumeInUse
        InvalidNetworkInterface.InUse ConcurrentTagAccess OperationInProgress""",
        Verdict(TRANSIENT, REGION),
    ),
    # Two launches set up the region's firewall at once, and the other one was first: seen with SkyPilot on the AWS lab.
    ("InvalidGroup.Duplicate InvalidPermission.Duplicate", Verdict(TRANSIENT, REGION)),
    (
        """InvalidClientTokenId AuthFailure ExpiredToken ExpiredTokenException RequestExpired TokenRefreshRequired
        SignatureDoesNotMatch IncompleteSignature IncompleteSignatureException InvalidSignatureException
        UnrecognizedClientException MissingAuthenticationToken MissingAuthenticationTokenException
        InvalidAccessKeyId InvalidSecurity InvalidToken InvalidIdentityToken IDPRejectedClaim
        IDPCommunicationError ExpiredIdentityToken RequestTimeTooSkewed NoCredentialsError
        PartialCredentialsError CredentialRetrievalError TokenRetrievalError SSOTokenLoadError
        UnauthorizedSSOTokenError ProfileNotFound SSOError ForbiddenException UnauthorizedException
        RegionDisabledException InvalidCredentials NotAuthorized
        InvalidConfigError""",
        Verdict(AUTH, CLOUD),
    ),
    (
        """UnauthorizedOperation AccessDenied AccessDeniedException NotAuthorizedException NotAuthorizedError
        AuthFailure.ServiceLinkedRoleCreationNotPermitted OperationNotPermittedException
        ServiceLinkedRoleNotPermitted""",
        Verdict(AUTH, CLOUD, Topic.PERMISSION),
    ),
    ("OptInRequired SubscriptionRequiredException", Verdict(AUTH, CLOUD, Topic.POLICY)),
    ("Blocked AccountDisabled AccountSuspended", Verdict(AUTH, CLOUD, Topic.BILLING)),
    ("PendingVerification", Verdict(AUTH, REGION, Topic.VERIFICATION)),
    (
        """InvalidAMIID.NotFound InvalidAMIID.Unavailable InvalidAMIID.Malformed InvalidAMIID
        UnsupportedInstanceArchitecture InvalidAMIName.Malformed InvalidImageId""",
        Verdict(CONFIG, REGION, Topic.IMAGE),
    ),
    (
        """InvalidSubnetID.NotFound InvalidSubnet InvalidSubnet.Conflict InvalidSubnetID.Malformed
        InvalidKeyPair.NotFound InvalidKeyPair.Duplicate InvalidKeyPair.Format InvalidGroup.NotFound
        InvalidGroupId.Malformed InvalidSecurityGroupID.NotFound
        InvalidSecurityGroup.NotFound InvalidVpcID.NotFound InvalidSnapshot.NotFound
        InvalidSnapshotID.Malformed InvalidLaunchTemplateId.NotFound InvalidLaunchTemplateName.NotFoundException
        InvalidLaunchTemplateId.VersionNotFound InvalidPlacementGroup.Unknown InvalidPlacementGroupId.Malformed
        InvalidCapacityReservationId.NotFound InvalidCapacityReservationState InvalidBlockDeviceMapping
        InvalidInstanceType InvalidInput InvalidHostID InvalidZone.NotFound InvalidAvailabilityZone InvalidRegion
        VPCIdNotSpecified DefaultVpcDoesNotExist DefaultSubnetDoesNotExistInAZ MissingInput NoSuchVpc
        UnsupportedOperation UnsupportedOperationException UnsupportedHostConfiguration UnsupportedTenancy
        OperationNotPermitted InvalidPermission.NotFound InvalidPermission.Malformed
        InvalidAllocationID.NotFound InvalidAddress.NotFound InvalidInterface.IpAddressLimitExceeded
        InvalidKMSKey.InvalidState InvalidKmsKeyId KMSKeyNotAccessibleFault Client.InternalError
        Client.InvalidParameterValue EncryptedVolumesNotSupported InvalidSpotFleetRequestConfig
        InvalidFleetConfiguration InvalidFleetConfig InvalidID bad-parameters InvalidAttachment.NotFound
        InvalidInternetGatewayID.NotFound InvalidRouteTableID.NotFound InvalidCpuCredits
        SecurityGroupNotFound InvalidReservationID.NotFound InvalidVolumeID.Malformed NoSuchSubnet
        MissingIAMInstanceProfile""",
        Verdict(CONFIG, REGION),
    ),
    (
        "InvalidParameterValue InvalidParameterValueException InvalidParameterCombination InvalidParameter",
        Verdict(CONFIG),
    ),
    # A malformed request, or one that names a global thing (IAM), fails alike in every region.
    (
        """MissingParameter MissingParameterException UnknownParameter InvalidAction InvalidQueryParameter
        MalformedQueryString MalformedPolicyDocument ValidationError ValidationException ParamValidationError
        InvalidUserData.Malformed InvalidRequest InvalidRequestException DryRunOperation InvalidTagKey.Malformed
        InvalidFormat InvalidCharacter InvalidIamInstanceProfile InvalidIamInstanceProfileArn.Malformed
        NoSuchEntity NoSuchEntityException EntityAlreadyExists SerializationException InvalidArgument
        InvalidParameterException UserDataSizeExceeded NoSuchVersion UnknownOperationException
        IdempotentParameterMismatch IdempotentParameterMismatchException InvalidClientToken InvalidEndpoint
        NoRegionError UnknownServiceError InvalidPaginationToken InvalidTokenFormat""",
        Verdict(CONFIG, CLOUD),
    ),
    (
        """SpotInstanceTermination SpotInstanceShutdown SpotInstanceInterruption instance-terminated-by-price
        instance-terminated-no-capacity instance-terminated-capacity-oversubscribed
        instance-stopped-by-price instance-stopped-no-capacity instance-stopped-capacity-oversubscribed
        instance-hibernated-no-capacity instance-hibernated-by-price marked-for-termination marked-for-stop
        instance-terminated-by-service instance-terminated-launch-group-constraint
        BidEvictedEvent EC2SpotInstanceInterruptionWarning""",
        Verdict(PREEMPTED, ZONE),
    ),
    ("schedule-expired", Verdict(TIMEOUT, ZONE)),
)

#: Compute Engine "Troubleshooting VM creation"; the `reason` values of Google API errors; Cloud TPU API; the
#: codes that SkyPilot's GCP provisioner reports.
GCP = _table(
    (
        """ZONE_RESOURCE_POOL_EXHAUSTED ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS insufficientCapacity
        INSUFFICIENT_CAPACITY stockout GPU_STOCKOUT resource_availability RESOURCE_POOL_EXHAUSTED
        GCE_STOCKOUT resourcePoolExhausted INSUFFICIENT_RESOURCES""",
        Verdict(CAPACITY, ZONE),
    ),
    ("REGION_RESOURCE_POOL_EXHAUSTED REGION_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", Verdict(CAPACITY, REGION)),
    ("IP_SPACE_EXHAUSTED IP_SPACE_EXHAUSTED_WITH_DETAILS", Verdict(CAPACITY, REGION, Topic.ADDRESSES)),
    # Seen both where a type is not offered, and where a VM is preempted while it is being made.
    ("UNSUPPORTED_OPERATION unsupportedOperation", Verdict(CAPACITY, ZONE, Topic.NOT_OFFERED)),
    (
        """RESERVATION_CAPACITY_EXCEEDED INSUFFICIENT_RESERVED_CAPACITY RESERVATION_INSUFFICIENT_CAPACITY
        NOT_ENOUGH_RESERVATION_CAPACITY""",
        Verdict(CAPACITY, ZONE, Topic.RESERVATION),
    ),
    ("RESERVATION_NOT_FOUND RESERVATION_NOT_READY INVALID_RESERVATION", Verdict(CONFIG, ZONE, Topic.RESERVATION)),
    (
        """QUOTA_EXCEEDED QUOTA_EXCEEDED_WITH_DETAILS quotaExceeded limitExceeded QuotaFailure
        REGIONAL_QUOTA_EXCEEDED regionalQuotaExceeded NODE_POOL_QUOTA_EXCEEDED concurrentLimitExceeded""",
        Verdict(QUOTA),
    ),
    (
        """rateLimitExceeded userRateLimitExceeded RATE_LIMIT_EXCEEDED dailyLimitExceeded
        servingLimitExceeded variableTermLimitExceeded userRateLimitExceededUnreg dailyLimitExceededUnreg""",
        Verdict(TRANSIENT, None, Topic.RATE_LIMIT),
    ),
    ("RESOURCE_OPERATION_RATE_EXCEEDED operationRateExceeded", Verdict(TRANSIENT, ZONE, Topic.RATE_LIMIT)),
    (
        """RESOURCE_NOT_READY resourceNotReady RESOURCE_IN_USE_BY_ANOTHER_RESOURCE resourceInUseByAnotherResource
        OPERATION_CANCELED_BY_USER""",
        Verdict(TRANSIENT, ZONE),
    ),
    ("fingerprintMismatch", Verdict(TRANSIENT)),
    (
        """IAM_PERMISSION_DENIED insufficientPermissions CONSUMER_INVALID ACCESS_TOKEN_SCOPE_INSUFFICIENT
        SERVICE_ACCOUNT_ACCESS_DENIED serviceAccountAccessDenied PERMISSIONS_ERROR requiredAccess
        forbidden SERVICE_ACCOUNT_NOT_FOUND serviceAccountNotFound USER_PROJECT_DENIED INSUFFICIENT_SCOPE""",
        Verdict(AUTH, CLOUD, Topic.PERMISSION),
    ),
    (
        """SERVICE_DISABLED accessNotConfigured CONSUMER_SUSPENDED projectNotFound ACCESS_TOKEN_EXPIRED
        ACCESS_TOKEN_TYPE_UNSUPPORTED API_KEY_INVALID API_KEY_SERVICE_BLOCKED ACCOUNT_STATE_INVALID
        authError invalid_grant invalid_client RefreshError DefaultCredentialsError CREDENTIALS_MISSING
        GoogleAuthError ReauthFailError ReauthUnattendedError invalid_rapt keyInvalid keyExpired
        loginRequired unauthorized_client""",
        Verdict(AUTH, CLOUD),
    ),
    (
        "BILLING_DISABLED billingNotEnabled billingDisabled UREQ_PROJECT_BILLING_NOT_FOUND accountDisabled",
        Verdict(AUTH, CLOUD, Topic.BILLING),
    ),
    (
        """ ORG_POLICY_VIOLATED orgPolicyViolated CONSTRAINT_VIOLATED
        SECURITY_POLICY_VIOLATED POLICY_VIOLATION""",
        Verdict(AUTH, CLOUD, Topic.POLICY),
    ),
    ("VPC_NOT_FOUND NETWORK_NOT_FOUND INVALID_FIREWALL_RULE", Verdict(CONFIG, CLOUD)),
    ("SUBNET_NOT_FOUND SUBNET_NOT_FOUND_FOR_VPC SUBNETWORK_NOT_FOUND", Verdict(CONFIG, REGION)),
    (
        """INVALID_USAGE INVALID_FIELD_VALUE INVALID_FIELD REQUIRED_FIELD_MISSING RESOURCE_ALREADY_EXISTS
        INVALID_RESOURCE_USAGE BAD_REQUEST INVALID_PARAMETER UNSUPPORTED_MACHINE_TYPE badRequest
        invalidParameter parseError INVALID_IMAGE resourceInUse INVALID_ARGUMENT_VALUE""",
        Verdict(CONFIG),
    ),
    ("PREEMPTED instances.preempted compute.instances.preempted", Verdict(PREEMPTED, ZONE)),
)

#: Azure "Resolve errors for SKU not available / allocation failures / resource quotas"; ARM common deployment
#: errors; Entra ID error codes; azure-core and azure-identity exception names; SkyPilot's Azure fail-over.
AZURE = _table(
    (
        """SkuNotAvailable AllocationFailed OverconstrainedAllocationRequest NotAvailableForSubscription
        AllocationFailure SpotNoCapacity OutOfCapacity AllocationTimeout VMSizeNotAvailable RegionIsFull
        InsufficientCapacity LocationNotAvailable CapacityNotAvailable VMSizeDoesntExistInRegion
        RegionalAndZonalAllocationFailed LowPriorityAllocationFailed SkuUnavailable""",
        Verdict(CAPACITY),
    ),
    (
        "ZonalAllocationFailed OverconstrainedZonalAllocationRequest ZoneIsFull ZoneSkuNotAvailable "
        "ZonalAllocationFailure AvailabilityZoneNotSupported",
        Verdict(CAPACITY, ZONE),
    ),
    ("VMSizeNotSupportedInZone", Verdict(CAPACITY, ZONE, Topic.NOT_OFFERED)),
    ("SubnetIsFull SubnetFull", Verdict(CAPACITY, REGION, Topic.ADDRESSES)),
    ("CapacityReservationGroupFull CapacityReservationFull", Verdict(CAPACITY, None, Topic.RESERVATION)),
    ("SpotPriceGreaterThanProvidedMaxPrice MaxPriceTooLow", Verdict(CAPACITY, REGION, Topic.PRICE)),
    (
        """QuotaExceeded ResourceQuotaExceeded PublicIPCountLimitReached LowPriorityQuotaExceeded
        SpotQuotaExceeded CoreQuotaExceeded VMQuotaExceeded InsufficientQuota RegionalCoreQuotaExceeded
        ResourceCountExceedsLimitDueToTemplate PublicIpAddressCountLimitReached OSDiskQuotaExceeded
        DiskQuotaExceeded MaxStorageAccountsCountPerSubscriptionExceeded SubscriptionQuotaExceeded
        AccountQuotaExceeded PublicIPCountLimitExceeded ComputeQuotaExceeded NetworkInterfaceCountLimitReached
        VirtualNetworkCountLimitReached NetworkSecurityGroupCountLimitReached ResourceGroupQuotaExceeded""",
        Verdict(QUOTA, REGION),
    ),
    (
        "TooManyRequests SubscriptionRequestsThrottled OperationThrottled ResourceRequestsThrottled "
        "TooManyRequestsReceived RequestThrottled HighCostGetThrottled ServerBusy",
        Verdict(TRANSIENT, REGION, Topic.RATE_LIMIT),
    ),
    (
        """RetryableError RetryableErrorDueToAnotherOperation AnotherOperationInProgress
        OperationPreempted InternalExecutionError InternalOperationError InternalDiskManagementError
        NetworkingInternalOperationError DeploymentActive
        ReferencedResourceNotProvisioned OperationTimedOut ServerTimeout GatewayTimeout ServiceUnavailable
        RequestTimeout OperationNotAllowedDueToConcurrent CanceledAndSupersededDueToAnotherOperation
        ResourceGroupBeingDeleted ResourceNotReady Canceled OperationCanceled StorageOperationInProgress""",
        Verdict(TRANSIENT, REGION),
    ),
    (
        "ServiceRequestError ServiceResponseError ServiceRequestTimeoutError ServiceResponseTimeoutError",
        Verdict(TRANSIENT, REGION, Topic.NETWORK),
    ),
    (
        """OSProvisioningTimedOut OSProvisioningInternalError OSProvisioningClientError VMStartTimedOut
        VMExtensionProvisioningTimeout VMAgentStatusCommunicationError VMProvisioningTimeout
        ProvisioningTimedOut VMRestartTimedOut""",
        Verdict(TIMEOUT, ZONE),
    ),
    (
        """ClientAuthenticationError CredentialUnavailableError InvalidAuthenticationToken AuthenticationRequired
        ExpiredAuthenticationToken InvalidAuthenticationTokenTenant InvalidAuthenticationTokenAudience
        AuthenticationFailed SubscriptionNotFound InvalidSubscriptionId SubscriptionNotRegistered
        MissingSubscriptionRegistration MissingSubscription InvalidClientSecret InvalidCredentials
        InvalidTenantId TenantNotFound AuthenticationFailedInvalidHeader UnauthorizedClient
        AuthenticationRequiredError AuthenticationError interaction_required""",
        Verdict(AUTH, CLOUD),
    ),
    (
        """AuthorizationFailed LinkedAuthorizationFailed DenyAssignmentAuthorizationFailed
        RoleAssignmentExists RoleAssignmentNotFound LinkedAccessCheckFailed InsufficientPrivileges
        AuthorizationPermissionMismatch UnauthorizedAccess InvalidResourceAccess""",
        Verdict(AUTH, CLOUD, Topic.PERMISSION),
    ),
    (
        """ReadOnlyDisabledSubscription DisabledSubscription SubscriptionDisabled SubscriptionSuspended
        MarketplacePurchaseEligibilityFailed ResourcePurchaseValidationFailed SpendingLimitReached
        ResourcePurchaseCanceled AccountIsDisabled SubscriptionNotActive SubscriptionIsOverDueBalance""",
        Verdict(AUTH, CLOUD, Topic.BILLING),
    ),
    (
        "RequestDisallowedByPolicy RequestDisallowedByAzure ScopeLocked PolicyViolation DisallowedOperation",
        Verdict(AUTH, None, Topic.POLICY),
    ),
    (
        """ImageNotFound PlatformImageNotFound ImageVersionNotFound GalleryImageNotFound VMImageNotFound
        VMMarketplaceInvalidInput DiskImageNotFound InvalidImageReference ImageVersionDeprecated""",
        Verdict(CONFIG, REGION, Topic.IMAGE),
    ),
    (
        """InvalidParameter InvalidParameterValue InvalidVMSize VMSizeNotSupported InvalidSubnet SubnetNotFound
        InvalidResourceReference NetworkInterfaceNotFound ResourceNotFound ParentResourceNotFound
        NoRegisteredProviderFound LocationNotAvailableForResourceType LocationNotAvailableForResourceGroup
        SecurityTypeNotSupported InvalidDiskSize VMExtensionProvisioningError VMExtensionHandlerNonTransientError
        InvalidLocation InvalidZone InvalidApiVersionParameter
        AvailabilitySetDoesNotSupport NicInUse VirtualMachineSizeNotSupported FeatureNotSupportedForVM
        StorageAccountAlreadyTaken SubnetsNotInSameVnet PropertyChangeNotAllowed ResourceExists
        FeatureNotRegistered SpotNotSupported LowPriorityNotSupported VMSizeDoesNotSupportSpot""",
        Verdict(CONFIG, REGION),
    ),
    (
        """ResourceGroupNotFound InvalidRequestContent InvalidRequestFormat InvalidResourceName InvalidTemplate
        AccountNotFound InvalidResourceGroup LinuxPasswordOrKeyInvalid InvalidCustomData MissingRequiredParameter
        InvalidResourceType InvalidPropertyInPayload""",
        Verdict(CONFIG, CLOUD),
    ),
    ("VMEvicted SpotEviction EvictionEvent VirtualMachineEvicted", Verdict(PREEMPTED, ZONE)),
)

#: Lambda Cloud API reference: the `code` of an error response.
LAMBDA = _table(
    ("instance-operations/launch/insufficient-capacity", Verdict(CAPACITY, REGION)),
    ("global/quota-exceeded", Verdict(QUOTA, CLOUD)),
    ("global/invalid-api-key global/missing-api-key", Verdict(AUTH, CLOUD)),
    ("global/forbidden", Verdict(AUTH, CLOUD, Topic.PERMISSION)),
    ("global/account-inactive account-inactive account-suspended", Verdict(AUTH, CLOUD, Topic.BILLING)),
    (
        "global/invalid-address global/billing-address-required global/payment-required",
        Verdict(AUTH, CLOUD, Topic.BILLING),
    ),
    ("global/rate-limited global/rate-limit", Verdict(TRANSIENT, CLOUD, Topic.RATE_LIMIT)),
    ("global/internal-error global/unknown global/maintenance global/conflict", Verdict(TRANSIENT, CLOUD)),
    (
        """instance-operations/launch/file-system-in-wrong-region file-systems/file-system-in-wrong-region
        instance-operations/launch/file-system-not-found""",
        Verdict(CONFIG, REGION),
    ),
    (
        """global/invalid-parameters global/object-does-not-exist global/duplicate ssh-keys/key-in-use
        instance-operations/launch/ssh-key-not-found global/unsupported""",
        Verdict(CONFIG, CLOUD),
    ),
)

#: OCI "API errors" (the `code` of a ServiceError), and the names SkyPilot's OCI provisioner adds.
OCI = _table(
    ("OutOfHostCapacity OutOfCapacity InsufficientHostCapacity", Verdict(CAPACITY, ZONE)),
    (
        "LimitExceeded QuotaExceeded TenantCapacityExceeded ServiceLimitExceeded CompartmentQuotaExceeded",
        Verdict(QUOTA, REGION),
    ),
    ("TooManyRequests UserRateLimitExceeded", Verdict(TRANSIENT, REGION, Topic.RATE_LIMIT)),
    (
        """IncorrectState ServiceUnavailable ExternalServerIncorrectState
        ResourceLocked RequestTimeout""",
        Verdict(TRANSIENT, REGION),
    ),
    (
        """NotAuthenticated NotAuthorizedOrNotFound NotAuthorized NotAllowed NotAuthorizedOrResourceAlreadyExists
        InvalidConfig ConfigFileNotFound ProfileNotFound InvalidPrivateKey InvalidKeyFilePath
        MissingPrivateKeyPassphrase
        SecurityTokenExpired Forbidden""",
        Verdict(AUTH, CLOUD),
    ),
    ("SignUpRequired TenancySuspended", Verdict(AUTH, CLOUD, Topic.BILLING)),
    ("ImageNotFound InvalidImageId", Verdict(CONFIG, REGION, Topic.IMAGE)),
    (
        """VcnSubnetNotFound VcnNotFound CannotParseRequest InvalidParameter MissingParameter
        RelatedResourceNotAuthorizedOrNotFound InvalidatedRetryToken InvalidAvailabilityDomain UnsupportedShape
        ShapeNotSupported InvalidShape UnprocessableEntity""",
        Verdict(CONFIG, REGION),
    ),
)

#: Kubernetes: container waiting reasons, pod conditions and API `reason`s; Kueue's workload conditions.
KUBERNETES = _table(
    (
        "NotTriggerScaleUp OutOfcpu OutOfmemory OutOfnvidia.com/gpu OutOfpods UnexpectedAdmissionError FailedScaleUp",
        Verdict(CAPACITY, CLOUD),
    ),
    ("SchedulingGated LocalQueueQuota", Verdict(QUOTA, CLOUD)),
    (
        """ImagePullBackOff ErrImagePull InvalidImageName ErrImageNeverPull ImageInspectError
        RegistryUnavailable ErrInvalidImageName""",
        Verdict(CONFIG, CLOUD, Topic.IMAGE),
    ),
    (
        """CrashLoopBackOff CreateContainerConfigError CreateContainerError RunContainerError OOMKilled
        PostStartHookError FailedMount FailedAttachVolume StartError ContainerCannotRun InvalidPodSpec""",
        Verdict(CONFIG, CLOUD),
    ),
    (
        "EvictionByEvictionAPI PreemptedByScheduler PreemptionByScheduler TerminationByKubelet",
        Verdict(PREEMPTED, CLOUD),
    ),
    (
        "Evicted Preempted Preempting DisruptionTarget TaintManagerEviction DeletionByTaintManager",
        Verdict(PREEMPTED, CLOUD),
    ),
    ("Unauthorized", Verdict(AUTH, CLOUD)),
    ("ServerTimeout TooManyRequests NodeNotReady NetworkNotReady", Verdict(TRANSIENT, CLOUD)),
)

#: Slurm: job state reasons (`squeue`, "JOB REASON CODES"), and the names of its error numbers.
SLURM = _table(
    (
        """ReqNodeNotAvail BeginTime Licenses
        Nodes_required_for_job_are_DOWN BurstBufferResources FrontEndDown""",
        Verdict(CAPACITY, CLOUD),
    ),
    ("Resources Priority", Verdict(CAPACITY, CLOUD)),
    ("PartitionDown PartitionInactive NodeDown NodeFail NODE_FAIL BOOT_FAIL", Verdict(TRANSIENT, CLOUD)),
    (
        """AssociationJobLimit AssociationResourceLimit AssociationTimeLimit QOSJobLimit QOSResourceLimit
        QOSTimeLimit JobArrayTaskLimit MaxJobsPerAccount MaxSubmitJobsPerUser
        AccountingPolicy QOSUsageThreshold""",
        Verdict(QUOTA, CLOUD),
    ),
    ("InvalidAccount InvalidQOS AccountNotAllowed QOSNotAllowed AccountingUnauthorized", Verdict(AUTH, CLOUD)),
    ("BadConstraints PartitionNodeLimit PartitionTimeLimit DependencyNeverSatisfied", Verdict(CONFIG, CLOUD)),
    ("PREEMPTED", Verdict(PREEMPTED, CLOUD)),
    ("TimeLimit DEADLINE", Verdict(TIMEOUT)),
)

#: Smaller clouds: the codes in their public API references and in SkyPilot's and dstack's adaptors. Their
#: regions (where they have any) come from `default_scope`.
SMALL: dict[str, dict[str, Verdict]] = {
    "vast": _table(
        ("no_such_ask ask_contract_not_available no_such_instance_type", Verdict(CAPACITY)),
        ("insufficient_credit", Verdict(AUTH, CLOUD, Topic.BILLING)),
        ("not_authorized auth_error", Verdict(AUTH, CLOUD)),
    ),
    "nebius": _table(
        ("NotEnoughResources", Verdict(CAPACITY)),
        ("QuotaFailure", Verdict(QUOTA)),
    ),
    "ibm": _table(
        ("cannot_start_capacity insufficient_capacity out_of_capacity capacity_not_available", Verdict(CAPACITY)),
        ("over_quota quota_exceeded exceeds_quota vcpu_quota_exceeded", Verdict(QUOTA)),
        ("not_authorized BXNIM0415E BXNIM0407E BXNIM0408E BXNIM0436E service_authorization", Verdict(AUTH)),
        ("image_not_found", Verdict(CONFIG, None, Topic.IMAGE)),
        ("instance_profile_not_found invalid_value validation_failed", Verdict(CONFIG)),
        ("internal_error service_error", Verdict(TRANSIENT)),
    ),
    "do": _table(("too_many_requests", Verdict(TRANSIENT, None, Topic.RATE_LIMIT))),
    "shadeform": _table(
        ("OUT_OF_STOCK INSUFFICIENT_CAPACITY", Verdict(CAPACITY)),
        ("INSUFFICIENT_BALANCE INSUFFICIENT_FUNDS", Verdict(AUTH, None, Topic.BILLING)),
    ),
    "runpod": _table(
        ("SUPPLY_CONSTRAINT", Verdict(CAPACITY)),
        ("INSUFFICIENT_FUNDS", Verdict(AUTH, None, Topic.BILLING)),
    ),
    "vsphere": _table(
        ("InsufficientCpuResourcesFault InsufficientMemoryResourcesFault NoCompatibleHost", Verdict(CAPACITY)),
        ("InsufficientResourcesFault InsufficientFailoverResourcesFault InsufficientStorageSpace", Verdict(CAPACITY)),
        ("InvalidLogin NoPermission NotAuthenticated", Verdict(AUTH)),
        ("HostNotConnected HostCommunication", Verdict(TRANSIENT)),
        ("ManagedObjectNotFound", Verdict(CONFIG)),
    ),
    "scp": _table(
        ("InsufficientResource ResourceShortage", Verdict(CAPACITY)),
        ("QuotaLimitExceeded", Verdict(QUOTA)),
    ),
    "primeintellect": _table(("OutOfStock", Verdict(CAPACITY))),
}

CLOUD_CODES: dict[str, dict[str, Verdict]] = {
    "aws": AWS,
    "gcp": GCP,
    "azure": AZURE,
    "lambda": LAMBDA,
    "oci": OCI,
    "kubernetes": KUBERNETES,
    "slurm": SLURM,
    **SMALL,
}

#: SkyPilot's own exceptions that say what is wrong (`sky.exceptions`). None as scope: the cloud that the text
#: names, and everything when it names none.
SKYPILOT = _table(
    (
        "NoCloudAccessError NoClusterAccess ApiServerAuthenticationError PermissionDeniedError "
        "UserRequestRejectedByPolicy AuthenticationRequiredError",
        Verdict(AUTH, ACCOUNT),
    ),
    (
        "CloudUserIdentityError ClusterOwnerIdentityMismatchError InvalidCloudCredentials InvalidCloudConfigs",
        Verdict(AUTH, CLOUD),
    ),
    (
        """ResourcesMismatchError InvalidClusterNameError InvalidSkyPilotConfigError StorageSpecError
        StorageModeError StorageNameError StorageSourceError StorageInitError StorageBucketCreateError
        StorageBucketGetError StorageBucketDeleteError StorageUploadError StorageExternalDeletionError
        StorageError ClusterDoesNotExist JobExitNonZero NoClusterLaunchedError
        APIVersionMismatchError APINotSupportedError VolumeNotFoundError VolumeTopologyConflictError
        InvalidTaskError ServeUserTerminatedError InvalidTaskYaml DagError
        JobNotFoundError InvalidSkyPilotConfig WorkspaceNotFoundError DisallowedByAdminPolicy""",
        Verdict(CONFIG, ACCOUNT),
    ),
    ("NotSupportedError", Verdict(CONFIG, None, Topic.UNSUPPORTED)),
    (
        """ApiServerConnectionError ServerTemporarilyUnavailableError RequestInterruptedError
        ExecutionRetryableError ExecutionPoolFullError ConcurrentWorkerExhaustedError""",
        Verdict(TRANSIENT, ACCOUNT, Topic.NETWORK),
    ),
    ("RequestCancelled RequestCancelledError", Verdict(TRANSIENT, ACCOUNT, Topic.CANCELLED)),
    (
        "ClusterNotUpError ClusterStatusFetchingError FetchClusterInfoError HeadNodeNotReadyError",
        Verdict(TRANSIENT, ZONE),
    ),
)

#: SkyPilot's exceptions that only deliver another error; used when nothing is inside.
SKYPILOT_WRAPPERS = _table(
    ("ResourcesUnavailableError", Verdict(CAPACITY, None, Topic.WRAPPER)),
    ("KubeAPIUnreachableError", Verdict(TRANSIENT, CLOUD, Topic.NETWORK)),
)

#: What SkyPilot puts around its own wrappers.
SKYPILOT_OUTERMOST = _table(("ProvisionPrechecksError", Verdict(CONFIG, ACCOUNT, Topic.WRAPPER)))

#: Codes that many clouds use, and statuses that a specific cause is often delivered in: google.rpc.Code (gRPC),
#: ARM's generic codes, exception names of the HTTP libraries.
STATUS = _table(
    ("UNAUTHENTICATED Unauthorized AuthenticationError InvalidApiKey invalid_api_key InvalidToken", Verdict(AUTH)),
    ("PERMISSION_DENIED Forbidden AccessDenied", Verdict(AUTH, None, Topic.PERMISSION)),
    ("RESOURCE_EXHAUSTED", Verdict(QUOTA)),
    ("OutOfStock out_of_stock OutOfCapacity InsufficientCapacity no_capacity capacity_exceeded", Verdict(CAPACITY)),
    ("QuotaExceeded quota_exceeded LimitExceeded limit_exceeded", Verdict(QUOTA)),
    ("InternalError InternalServerError INTERNAL INTERNAL_ERROR internal_server_error", Verdict(TRANSIENT)),
    ("UNAVAILABLE ServiceUnavailable ABORTED DATA_LOSS backendError backend_error", Verdict(TRANSIENT)),
    (
        "TooManyRequests too_many_requests RateLimitExceeded rate_limit_exceeded",
        Verdict(TRANSIENT, None, Topic.RATE_LIMIT),
    ),
    (
        """DEADLINE_EXCEEDED ConnectionError ConnectTimeout ReadTimeout ConnectTimeoutError ReadTimeoutError
        EndpointConnectionError ConnectionClosedError MaxRetryError NewConnectionError RemoteDisconnected
        ConnectionResetError ConnectionRefusedError ProtocolError SSLError NameResolutionError ProxyConnectionError
        HTTPClientError ConnectError RemoteProtocolError IncompleteRead ServerNotFoundError
        ConnectionAbortedError BrokenPipeError gaierror ServerDisconnectedError ClientConnectorError""",
        Verdict(TRANSIENT, None, Topic.NETWORK),
    ),
    # Kubernetes: the reason of an event whose message says why.
    ("FailedScheduling Unschedulable", Verdict(CAPACITY)),
    (
        """NOT_FOUND INVALID_ARGUMENT FAILED_PRECONDITION ALREADY_EXISTS OUT_OF_RANGE UNIMPLEMENTED notFound
        RESOURCE_NOT_FOUND resourceNotFound invalid unprocessable_entity UnprocessableEntity BadRequest
        InvalidTemplateDeployment DeploymentFailed OperationNotAllowed Conflict""",
        Verdict(CONFIG),
    ),
)


def http_status(number: int) -> Verdict | None:
    """What an HTTP status says by itself (RFC 9110); None for one that says nothing."""
    if number in (401, 407):
        return Verdict(AUTH)
    if number == 402:
        return Verdict(AUTH, None, Topic.BILLING)
    if number == 403:
        return Verdict(AUTH, None, Topic.PERMISSION)
    if number == 429:
        return Verdict(TRANSIENT, None, Topic.RATE_LIMIT)
    if number in (408, 409, 423, 425) or 500 <= number <= 599:
        return Verdict(TRANSIENT, None, Topic.NETWORK if number in (408, 502, 504) else Topic.GENERAL)
    if 400 <= number <= 499:
        return Verdict(CONFIG)
    return None
